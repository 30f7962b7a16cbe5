// A base whose pages are captured straight into its memory file: the same template as one that was written, and nothing
// of it before the seal.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "migration/staging.h"
#include "support/crash.h"
#include "support/stored_delta.h"

namespace fvmm::migration {
namespace {

using memory::PageIndex;
using memory::set_seal_step_hook;
using memory::TemplateInfo;
using memory::TemplateStore;
using memory::TemplateWriter;
using testing::content_of;
using testing::delta_over;
using testing::entries_of;
using testing::kTestMemoryBytes;
using testing::store_delta;
using testing::store_template;
using testing::test_machine_state;
using testing::test_memory;
using testing::wanted_template;

constexpr std::uint64_t kPages = kTestMemoryBytes / kPageBytes;

/// As a capture comes: backwards in runs of 64, some pages twice, the first copies wrong.
Status capture(StagedPages& staged, const std::vector<std::byte>& memory) {
  const std::vector<std::byte> wrong(64 * kPageBytes, std::byte{0x77});
  FVMM_TRY(staged.put({.first = 512, .count = 64}, wrong.data()));
  FVMM_TRY(staged.put({.first = 0, .count = 1}, wrong.data()));
  for (std::uint64_t run = kPages / 64; run-- > 0;) {
    FVMM_TRY(staged.put({.first = run * 64, .count = 64}, memory.data() + run * 64 * kPageBytes));
  }
  FVMM_TRY(staged.reserve(8));
  FVMM_TRY(staged.put({.first = 10, .count = 2}, memory.data() + 10 * kPageBytes));
  return staged.settle();
}

Result<TemplateInfo> store_captured(TemplateStore& store, const std::string& name,
                                    const std::vector<std::byte>& memory) {
  TemplateWriter writer = FVMM_TRY(store.begin(wanted_template(name)));
  const auto staged = FVMM_TRY(StagedPages::over(writer.capture_file(), kTestMemoryBytes));
  FVMM_TRY(capture(*staged, memory));
  for (PageIndex at = 0; at < kPages; at += 1024) {
    FVMM_TRY(writer.add_captured(at, staged->pages({.first = at, .count = 1024})));
  }
  FVMM_TRY(writer.set_machine_state(test_machine_state()));
  return writer.seal();
}

TEST(TemplateCapture, IsTheSameTemplateAsAWrittenOneHolesIncluded) {
  const testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path());
  const std::vector<std::byte> memory = test_memory(1);
  const auto written = store_template(store, wanted_template("written"), memory);
  const auto captured = store_captured(store, "captured", memory);
  ASSERT_TRUE(captured.ok()) << captured.error().message();
  EXPECT_EQ(captured->digest, written->digest);
  EXPECT_EQ(captured->pages, written->pages);
  EXPECT_EQ(content_of(store, "captured"), memory);
  EXPECT_EQ(store.verify("captured")->detail, "");
  EXPECT_LE(captured->stored_bytes, written->stored_bytes + 64 * kPageBytes) << "captured zeros gave their blocks back";
  struct stat file {};
  ASSERT_EQ(::stat((dir.path() / "captured" / "memory").c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777U, 0400U);
}

TEST(TemplateCapture, KilledBeforeAnyStepThereIsNothingOrTheWholeTemplate) {
  for (const std::string step :
       {"captured", "write-hashes", "fsync-memory", "write-manifest", "rename", "fsync-store"}) {
    const testing::TempDir dir;
    TemplateStore store = *TemplateStore::open(dir.path());
    const int status = testing::status_of_child([&] {
      set_seal_step_hook([&](std::string_view at) {
        if (at == step) ::raise(SIGKILL);
      });
      if (step != "captured") (void)store_captured(store, "web", test_memory(1));
      TemplateWriter writer = *store.begin(wanted_template("web"));
      const auto staged = std::move(*StagedPages::over(writer.capture_file(), kTestMemoryBytes));
      (void)capture(*staged, test_memory(1));
      ::raise(SIGKILL);
    });
    ASSERT_TRUE(testing::was_killed(status)) << step;
    const bool whole = step == "fsync-store";
    EXPECT_EQ(store.find("web").ok(), whole) << step;
    ASSERT_TRUE(store.sweep().ok());
    EXPECT_EQ(entries_of(dir.path()).size(), whole ? 1U : 0U) << step;
    if (whole) {
      EXPECT_EQ(store.verify("web")->detail, "");
    }
  }
}

TEST(TemplateCapture, AFullDiskIsTypedAndLeavesNothing) {
  const testing::TempDir dir;
  const std::string wrong = testing::on_tmpfs(dir.path(), "size=8m", [&]() -> std::string {
    TemplateStore store = *TemplateStore::open(dir.path());
    auto wanted = wanted_template("web");
    wanted.bytes_expected = kMiB;
    {
      TemplateWriter writer = *store.begin(wanted);
      const auto staged = std::move(*StagedPages::over(writer.capture_file(), kTestMemoryBytes));
      const std::string bad = testing::not_exhausted(capture(*staged, test_memory(1)), "capture");
      if (!bad.empty()) return bad;
    }
    return entries_of(dir.path()).empty() ? "" : "something was left";
  });
  SKIP_OR_EXPECT_GOOD(wrong);
}

TEST(TemplateCapture, ADeltaHasNoFileToCaptureInto) {
  const testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path());
  ASSERT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  TemplateWriter writer = *store.begin_delta(delta_over("web"));
  EXPECT_EQ(writer.capture_file(), -1);
  const std::vector<std::byte> page(kPageBytes, std::byte{1});
  EXPECT_EQ(writer.add_captured(0, page).error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(writer.add_pages(0, page).ok()) << "and it is not spent";
}

TEST(TemplateCapture, WithoutAFileThereIsNothingToStageOver) {
  EXPECT_EQ(StagedPages::over(-1, kTestMemoryBytes).error().code(), Errc::kIo);
}

}  // namespace
}  // namespace fvmm::migration
