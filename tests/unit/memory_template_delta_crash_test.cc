#include <fcntl.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "support/crash.h"
#include "support/stored_delta.h"

namespace fvmm::memory {
namespace {

using testing::content_of;
using testing::delta_over;
using testing::entries_of;
using testing::names_of;
using testing::not_exhausted;
using testing::on_tmpfs;
using testing::status_of_child;
using testing::store_delta;
using testing::store_template;
using testing::test_machine_state;
using testing::test_memory;
using testing::wanted_template;
using testing::was_killed;
using testing::write_into;
using testing::Writes;

using Names = std::vector<std::string>;

const Writes kFirst = {{1, 0x101}, {2, 0}, {100, 0x202}};
const Writes kSecond = {{2, 0x303}, {100, 0}, {300, 0x404}};

/// web <- web@4
TemplateStore small_store(const std::filesystem::path& directory) {
  TemplateStore store = *TemplateStore::open(directory);
  EXPECT_TRUE(store_template(store, wanted_template("web"), test_memory(1)).ok());
  EXPECT_TRUE(store_delta(store, delta_over("web"), kFirst).ok());
  return store;
}

/// Steps that `work` passes in an undisturbed run.
template <class Work>
Names steps_of(Work work) {
  Names steps;
  const testing::TempDir dir;
  TemplateStore store = small_store(dir.path());
  set_seal_step_hook([&](std::string_view step) { steps.emplace_back(step); });
  work(store);
  set_seal_step_hook(nullptr);
  return steps;
}

template <class Work>
bool killed_at(const std::string& step, TemplateStore& store, Work work) {
  return was_killed(status_of_child([&] {
    set_seal_step_hook([&](std::string_view at) {
      if (at == step) ::raise(SIGKILL);
    });
    work(store);
  }));
}

void seal_second(TemplateStore& store) {
  (void)store_delta(store, delta_over("web@4"), kSecond);
}

void fold_first(TemplateStore& store) {
  (void)store.fold("web@4");
}

TEST(DeltaSteps, EveryFileIsSyncedBeforeTheManifestAndTheManifestBeforeTheRename) {
  const Names expected = {"write-hashes",   "fsync-pages",   "fsync-hashes", "write-machine",
                          "fsync-machine",  "write-pin",     "fsync-pin",    "write-manifest",
                          "fsync-manifest", "fsync-staging", "rename",       "fsync-store"};
  EXPECT_EQ(steps_of(seal_second), expected);
}

TEST(FoldSteps, EveryFileIsSyncedBeforeTheManifestAndTheManifestBeforeTheExchange) {
  const Names expected = {"write-hashes", "fsync-hashes", "write-memory",   "fsync-memory",   "link-delta",
                          "link-machine", "link-pin",     "write-manifest", "fsync-manifest", "fsync-staging",
                          "exchange",     "fsync-store",  "remove-old"};
  EXPECT_EQ(steps_of(fold_first), expected);
}

TEST(DeltaCrash, KilledBeforeAnyStepTheDeltaIsWholeOrNotThere) {
  std::vector<std::byte> memory = test_memory(1);
  write_into(kFirst, memory);
  for (const std::string& step : steps_of(seal_second)) {
    const testing::TempDir dir;
    TemplateStore store = small_store(dir.path());
    ASSERT_TRUE(killed_at(step, store, seal_second)) << step;
    ASSERT_TRUE(store.sweep().ok());

    const bool sealed = step == "fsync-store";
    EXPECT_EQ(entries_of(dir.path()), sealed ? (Names{"web", "web@4", "web@5"}) : (Names{"web", "web@4"})) << step;
    EXPECT_EQ(content_of(store, "web@4"), memory) << step;
    if (!sealed) seal_second(store);
    std::vector<std::byte> after = memory;
    write_into(kSecond, after);
    EXPECT_EQ(content_of(store, "web@5"), after) << step;
    EXPECT_EQ(store.verify("web@5")->detail, "") << step;
  }
}

TEST(FoldCrash, KilledBeforeAnyStepTheDeltaIsTheOldOneOrTheFoldedOne) {
  std::vector<std::byte> memory = test_memory(1);
  write_into(kFirst, memory);
  for (const std::string& step : steps_of(fold_first)) {
    const testing::TempDir dir;
    TemplateStore store = small_store(dir.path());
    const TemplateInfo before = *store.find("web@4");
    ASSERT_TRUE(killed_at(step, store, fold_first)) << step;
    for (const bool swept : {false, true}) {
      if (swept) {
        ASSERT_TRUE(store.sweep().ok());
      }
      const auto found = store.find("web@4");
      ASSERT_TRUE(found.ok()) << step << ": " << found.error().message();
      EXPECT_EQ(found->is_delta(), step != "fsync-store" && step != "remove-old") << step;
      EXPECT_EQ(found->digest, before.digest) << step;
      EXPECT_EQ(content_of(store, "web@4"), memory) << step;
      EXPECT_EQ(store.verify("web@4")->detail, "") << step;
    }
    EXPECT_EQ(entries_of(dir.path()), (Names{"web", "web@4"})) << step;
    EXPECT_FALSE(store.fold("web@4")->is_delta()) << step;
    EXPECT_EQ(content_of(store, "web@4"), memory) << step;
    EXPECT_TRUE(store.remove("web").ok()) << step;
  }
}

/// Fills what is left of the filesystem.
UniqueFd fill(const std::filesystem::path& directory) {
  UniqueFd ballast = *open_file(directory / "ballast", O_RDWR | O_CREAT);
  const std::vector<std::byte> block(kPageBytes, std::byte{1});
  for (std::uint64_t at = 0; write_all(ballast.get(), block, at).ok();) at += kPageBytes;
  return ballast;
}

/// A store with web and web@4 on a filesystem that is too small for much more.
Result<TemplateStore> tiny_store(const std::filesystem::path& directory) {
  TemplateStore store = FVMM_TRY(TemplateStore::open(directory));
  auto wanted = wanted_template("web");
  wanted.bytes_expected = kMiB;
  FVMM_TRY(store_template(store, wanted, test_memory(1)));
  FVMM_TRY(store_delta(store, delta_over("web"), kFirst));
  return store;
}

TEST(FullDisk, BeginDeltaNamesWhatIsNeeded) {
  const testing::TempDir dir;
  const std::string wrong = on_tmpfs(dir.path(), "size=8m", [&] {
    TemplateStore store = *tiny_store(dir.path());
    auto wanted = delta_over("web@4");
    wanted.pages_expected = 2048;
    return not_exhausted(store.begin_delta(wanted), "begin_delta");
  });
  SKIP_OR_EXPECT_GOOD(wrong);
}

TEST(FullDisk, DeltaFailsTypedAndGivesTheSpaceBackAtOnce) {
  const testing::TempDir dir;
  const std::string wrong = on_tmpfs(dir.path(), "size=8m", [&] {
    TemplateStore store = *tiny_store(dir.path());
    TemplateWriter writer = *store.begin_delta(delta_over("web@4"));
    const std::vector<std::byte> memory(testing::kTestMemoryBytes, std::byte{1});
    std::string bad = not_exhausted(writer.add_pages(0, memory), "add_pages");
    if (bad.empty() && entries_of(dir.path()) != (Names{"web", "web@4"})) bad = "something was left";
    if (bad.empty() && writer.seal().ok()) bad = "sealed all the same";
    return bad;
  });
  SKIP_OR_EXPECT_GOOD(wrong);
}

TEST(FullDisk, SealOfADeltaFailsTypedAndLeavesNothing) {
  const testing::TempDir dir;
  const std::string wrong = on_tmpfs(dir.path(), "size=8m", [&] {
    TemplateStore store = *tiny_store(dir.path());
    TemplateWriter writer = *store.begin_delta(delta_over("web@4"));
    if (!writer.add_pages(0, test_memory(1)).ok()) return std::string("add_pages");
    if (!writer.set_machine_state(test_machine_state()).ok()) return std::string("set_machine_state");
    const UniqueFd ballast = fill(dir.path());
    std::string bad = not_exhausted(writer.seal(), "seal");
    if (bad.empty() && entries_of(dir.path()) != (Names{"ballast", "web", "web@4"})) bad = "something was left";
    return bad;
  });
  SKIP_OR_EXPECT_GOOD(wrong);
}

/// Folds with `left` pages of room; the delta must be what it was.
std::string fold_with(const std::filesystem::path& directory, std::uint64_t left) {
  TemplateStore store = *tiny_store(directory);
  const UniqueFd ballast = fill(directory);
  const auto bytes = static_cast<std::uint64_t>(::lseek(ballast.get(), 0, SEEK_END));
  if (::ftruncate(ballast.get(), static_cast<off_t>(bytes - left * kPageBytes)) != 0) return "ftruncate";
  std::string bad = not_exhausted(store.fold("web@4"), "fold");
  if (bad.empty() && entries_of(directory) != (Names{"ballast", "web", "web@4"})) bad = "something was left";
  if (bad.empty() && store.verify("web@4")->detail != "") bad = "damaged";
  if (bad.empty() && !store.find("web@4")->is_delta()) bad = "folded";
  return bad;
}

TEST(FullDisk, FoldFailsTypedAndLeavesTheDeltaAsItWas) {
  for (const std::uint64_t left : {0U, 1U, 3U, 200U}) {  // 200: the check of free space, which wants 1 MiB to spare
    const testing::TempDir dir;
    const std::string wrong = on_tmpfs(dir.path(), "size=8m", [&] { return fold_with(dir.path(), left); });
    SKIP_OR_EXPECT_GOOD(wrong);
  }
}

}  // namespace
}  // namespace fvmm::memory
