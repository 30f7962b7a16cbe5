#include <fcntl.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "support/crash.h"
#include "support/stored_template.h"

namespace fvmm::memory {
namespace {

using testing::entries_of;
using testing::names_of;
using testing::not_exhausted;
using testing::on_tmpfs;
using testing::status_of_child;
using testing::store_template;
using testing::test_machine_state;
using testing::test_memory;
using testing::wanted_template;
using testing::was_killed;

using Names = std::vector<std::string>;

/// Steps of one seal, in order, from a run that is not disturbed.
Names seal_steps() {
  Names steps;
  const testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path());
  set_seal_step_hook([&](std::string_view step) { steps.emplace_back(step); });
  EXPECT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  set_seal_step_hook(nullptr);
  return steps;
}

TEST(SealSteps, EveryFileIsSyncedBeforeTheManifestAndTheManifestBeforeTheRename) {
  const Names expected = {"write-hashes",   "fsync-memory",  "fsync-hashes", "write-machine",
                          "fsync-machine",  "write-pin",     "fsync-pin",    "write-manifest",
                          "fsync-manifest", "fsync-staging", "rename",       "fsync-store"};
  EXPECT_EQ(seal_steps(), expected);
}

TEST(Crash, KilledBeforeAnyStepTheStoreHoldsTheOldStateOrTheNewOneWhole) {
  const Names steps = seal_steps();
  for (std::size_t k = 0; k < steps.size(); ++k) {
    const testing::TempDir dir;
    TemplateStore store = *TemplateStore::open(dir.path());
    ASSERT_TRUE(store_template(store, wanted_template("old"), test_memory(1)).ok());

    const int status = status_of_child([&] {
      set_seal_step_hook([&](std::string_view step) {
        if (step == steps[k]) ::raise(SIGKILL);
      });
      (void)store_template(store, wanted_template("new"), test_memory(2));
    });
    ASSERT_TRUE(was_killed(status)) << steps[k];
    EXPECT_EQ(store.find("new").ok(), steps[k] == "fsync-store") << steps[k];
    ASSERT_TRUE(store.sweep().ok());

    const bool renamed = steps[k] == "fsync-store";
    const Names expected = renamed ? Names{"new", "old"} : Names{"old"};
    EXPECT_EQ(names_of(*store.list()), expected) << steps[k];
    EXPECT_EQ(entries_of(dir.path()), expected) << steps[k];
    for (const std::string& name : expected) {
      const auto report = store.verify(name);
      ASSERT_TRUE(report.ok()) << steps[k] << ": " << report.error().message();
      EXPECT_EQ(report->detail, "") << steps[k];
    }
    if (!renamed) {
      EXPECT_TRUE(store_template(store, wanted_template("new"), test_memory(2)).ok()) << steps[k];
    }
  }
}

TEST(Crash, KilledWhileWritingPagesLeavesNothingAfterASweep) {
  const testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path());
  const int status = status_of_child([&] {
    auto writer = store.begin(wanted_template("new"));
    (void)writer->add_pages(0, test_memory(1));
    ::raise(SIGKILL);
  });
  ASSERT_TRUE(was_killed(status));
  EXPECT_EQ(entries_of(dir.path()).size(), 1U);
  EXPECT_TRUE(store.list()->empty());
  ASSERT_TRUE(store.sweep().ok());
  EXPECT_TRUE(entries_of(dir.path()).empty());
}

TEST(Crash, KilledDuringAnImportLeavesTheSourceWhole) {
  for (const std::string step : {"write-pin", "write-manifest", "fsync-staging", "rename"}) {
    const testing::TempDir dir;
    TemplateStore source = *TemplateStore::open(dir.path() / "source");
    TemplateStore target = *TemplateStore::open(dir.path() / "target");
    ASSERT_TRUE(store_template(source, wanted_template("web"), test_memory(1)).ok());
    const int status = status_of_child([&] {
      set_seal_step_hook([&](std::string_view at) {
        if (at == step) ::raise(SIGKILL);
      });
      (void)target.import_linked(source.directory() / "web");
    });
    ASSERT_TRUE(was_killed(status)) << step;
    ASSERT_TRUE(target.sweep().ok());
    EXPECT_TRUE(entries_of(target.directory()).empty()) << step;
    EXPECT_EQ(source.verify("web")->detail, "") << step;
  }
}

TEST(FullDisk, BeginNamesWhatIsNeededAndWhatIsThere) {
  const testing::TempDir dir;
  const std::string wrong = on_tmpfs(dir.path(), "size=8m", [&] {
    TemplateStore store = *TemplateStore::open(dir.path());
    const auto writer = store.begin(wanted_template("web"));
    if (writer.ok()) return std::string("16 MiB fit into 8");
    const std::string& message = writer.error().message();
    const bool names_both =
        message.find("8388608") != std::string::npos && message.find("17924144") != std::string::npos;
    return names_both ? not_exhausted(writer, "begin") : message;
  });
  SKIP_OR_EXPECT_GOOD(wrong);
}

TEST(FullDisk, AddPagesFailsTypedAndGivesTheSpaceBackAtOnce) {
  const testing::TempDir dir;
  const std::string wrong = on_tmpfs(dir.path(), "size=8m", [&] {
    TemplateStore store = *TemplateStore::open(dir.path());
    auto wanted = wanted_template("web");
    wanted.bytes_expected = kMiB;
    TemplateWriter writer = *store.begin(wanted);
    const std::vector<std::byte> memory(wanted.memory_bytes, std::byte{1});
    std::string bad = not_exhausted(writer.add_pages(0, memory), "add_pages");
    if (bad.empty() && !entries_of(dir.path()).empty()) bad = "something was left";
    if (bad.empty() && writer.seal().ok()) bad = "sealed all the same";
    return bad;
  });
  SKIP_OR_EXPECT_GOOD(wrong);
}

TEST(FullDisk, SealFailsTypedAndLeavesNothing) {
  const testing::TempDir dir;
  const std::string wrong = on_tmpfs(dir.path(), "size=8m", [&] {
    TemplateStore store = *TemplateStore::open(dir.path());
    auto wanted = wanted_template("web");
    wanted.bytes_expected = kMiB;
    TemplateWriter writer = *store.begin(wanted);
    if (!writer.add_pages(0, test_memory(1)).ok()) return std::string("add_pages");
    if (!writer.set_machine_state(test_machine_state()).ok()) return std::string("set_machine_state");
    const UniqueFd ballast = *open_file(dir.path() / "ballast", O_RDWR | O_CREAT);
    const std::vector<std::byte> block(kPageBytes, std::byte{1});
    for (std::uint64_t at = 0; write_all(ballast.get(), block, at).ok();) at += kPageBytes;
    std::string bad = not_exhausted(writer.seal(), "seal");
    if (bad.empty() && entries_of(dir.path()) != Names{"ballast"}) bad = "something was left";
    return bad;
  });
  SKIP_OR_EXPECT_GOOD(wrong);
}

TEST(FullDisk, BeginWithoutInodesIsTypedAndLeavesNothing) {
  for (const char* options : {"size=64m,nr_inodes=1", "size=64m,nr_inodes=2", "size=64m,nr_inodes=3"}) {
    const testing::TempDir dir;
    const std::string wrong = on_tmpfs(dir.path(), options, [&] {
      TemplateStore store = *TemplateStore::open(dir.path());
      std::string bad = not_exhausted(store.begin(wanted_template("web")), "begin");
      if (bad.empty() && !entries_of(dir.path()).empty()) bad = "something was left";
      return bad;
    });
    SKIP_OR_EXPECT_GOOD(wrong);
  }
}

}  // namespace
}  // namespace fvmm::memory
