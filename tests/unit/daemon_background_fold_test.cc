// Folds in the background: what is folded and what is left alone, and that nobody notices but by `template show`.
#include "daemon/background_fold.h"

#include <fcntl.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <future>
#include <latch>
#include <sstream>

#include "base/file.h"
#include "memory/guest_memory.h"
#include "support/crash.h"
#include "support/stored_delta.h"

namespace fvmm::daemon {
namespace {

using memory::TemplateStore;
using testing::content_of;
using testing::delta_over;
using testing::entries_of;
using testing::store_delta;
using testing::store_template;
using testing::test_memory;
using testing::wanted_template;
using testing::write_into;
using testing::Writes;

using Names = std::vector<std::string>;

const FoldTimes kAtOnce{.rest = std::chrono::milliseconds(0), .retry = std::chrono::milliseconds(1)};

/// `runs` single pages, none beside another.
Writes scattered(std::uint64_t runs) {
  Writes writes;
  for (std::uint64_t i = 0; i < runs; ++i) writes[2 * i + 100] = static_cast<unsigned>(0x101 + i);
  return writes;
}

template <class Condition>
bool soon(Condition condition) {
  for (const Deadline end = Deadline::after(std::chrono::seconds(60)); !end.passed();) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

Result<memory::TemplateInfo> add_delta(TemplateStore& store, const std::string& parent, const std::string& name,
                                       const Writes& writes) {
  auto wanted = delta_over(parent);
  wanted.name = name;
  return store_delta(store, wanted, writes);
}

class BackgroundFoldTest : public ::testing::Test {
 protected:
  BackgroundFoldTest() : store_(*TemplateStore::open(dir_.path())) {
    EXPECT_TRUE(store_template(store_, wanted_template("base"), test_memory(1)).ok());
  }
  ~BackgroundFoldTest() override {
    folds_.reset();
    memory::set_seal_step_hook(nullptr);
  }
  void start(FoldTimes times = kAtOnce) { folds_ = std::move(*BackgroundFold::start(store_, times)); }
  bool folded(const std::string& name) {
    return soon([&] {
      const auto found = store_.find(name);  // it may not be there yet
      return found && !found->is_delta() && folds_->state(name).empty();
    });
  }
  static std::vector<std::byte> after(const Writes& writes) {
    std::vector<std::byte> memory = test_memory(1);
    write_into(writes, memory);
    return memory;
  }
  const testing::TempDir dir_{"/dev/shm"};  // every seal has a dozen fsyncs
  TemplateStore store_;
  std::unique_ptr<BackgroundFold> folds_;
};

TEST_F(BackgroundFoldTest, MoreRunsThanCanBeMappedAreFoldedAndAsManyAreNot) {
  const Writes most = scattered(memory::kMappableRunsMax);
  const Writes more = scattered(memory::kMappableRunsMax + 1);
  ASSERT_TRUE(add_delta(store_, "base", "at", most).ok());
  const auto before = add_delta(store_, "base", "past", more);
  ASSERT_TRUE(before.ok());

  start();  // looks at "at" first

  ASSERT_TRUE(folded("past"));
  EXPECT_TRUE(store_.find("at")->is_delta());
  EXPECT_EQ(store_.find("past")->digest, before->digest);
  EXPECT_EQ(store_.find("past")->id, before->id);
  EXPECT_EQ(content_of(store_, "past"), after(more));
  EXPECT_EQ(store_.verify("past")->detail, "");
  EXPECT_EQ(entries_of(dir_.path()), (Names{"at", "base", "past"}));
}

TEST_F(BackgroundFoldTest, AChainPastItsLimitIsFoldedAndWhatLiesOnItIsShortAgain) {
  std::string parent = "base";
  Writes all;
  for (std::uint32_t i = 2; i <= memory::kFoldChainMax + 2; ++i) {
    const Writes one{{i, 0x100 + i}};
    const std::string name = "t" + std::to_string(i);
    ASSERT_TRUE(add_delta(store_, parent, name, one).ok());
    all.insert(one.begin(), one.end());
    parent = name;
  }
  const std::string at = "t" + std::to_string(memory::kFoldChainMax);
  const std::string past = "t" + std::to_string(memory::kFoldChainMax + 1);
  start();
  ASSERT_TRUE(folded(past));
  ASSERT_TRUE(soon([&] { return folds_->state(parent).empty(); }));
  EXPECT_TRUE(store_.find(at)->is_delta());
  EXPECT_TRUE(store_.find(parent)->is_delta()) << "its chain is short now";
  EXPECT_EQ(store_.find(parent)->chain, 2U);
  EXPECT_EQ(content_of(store_, parent), after(all));
}

TEST_F(BackgroundFoldTest, WhatIsSealedLaterIsFoldedWhileAVmMapsItAndTheVmSeesNoChange) {
  const Writes writes = scattered(memory::kMappableRunsMax + 500);
  std::latch sealed(1);  // the fold waits until the delta is mapped
  memory::set_seal_step_hook([&](std::string_view step) {
    if (step == "write-memory") sealed.wait();
  });
  start();
  const auto info = add_delta(store_, "base", "web", writes);
  ASSERT_TRUE(info.ok());
  const auto opened = *memory::OpenTemplate::open(info->directory);
  auto ram = std::move(*memory::GuestMemory::reserve(testing::kTestMemoryBytes));
  ASSERT_TRUE(ram->map_template(opened.image()).ok());
  ASSERT_TRUE(soon([&] { return folds_->state("web") == "folding"; }));
  sealed.count_down();
  ASSERT_TRUE(folded("web"));
  EXPECT_EQ(store_.show("web")->pins, 1U) << "carried over";
  const auto expected = after(writes);
  const auto seen = ram->pages({.first = 0, .count = expected.size() / kPageBytes});
  EXPECT_TRUE(std::ranges::equal(seen, expected));
}

TEST_F(BackgroundFoldTest, AGenerationOfOursWaitsUntilItsLineRests) {
  const Writes writes = scattered(memory::kMappableRunsMax + 1);
  ASSERT_TRUE(add_delta(store_, "base", "web@4", writes).ok());
  start({.rest = std::chrono::hours(1)});
  ASSERT_TRUE(soon([&] { return folds_->state("web@4") == "waiting"; }));
  ASSERT_TRUE(add_delta(store_, "web@4", "web@5", {{1, 7}}).ok());
  ASSERT_TRUE(soon([&] { return folds_->state("web@5") == "waiting"; }));
  EXPECT_EQ(folds_->state("web@4"), "");
  ASSERT_TRUE(add_delta(store_, "base", "named", writes).ok());
  ASSERT_TRUE(folded("named"));
  EXPECT_TRUE(store_.find("web@4")->is_delta());
  EXPECT_TRUE(store_.find("web@5")->is_delta());
  start();
  ASSERT_TRUE(folded("web@5")) << "the newest, once it rests";
  EXPECT_TRUE(store_.find("web@4")->is_delta());
}

// A replica's receiver seals, squashes and removes while a fold of its line is under way: none of it fails.
TEST_F(BackgroundFoldTest, ANewerGenerationEndsTheFoldOfItsLine) {
  ASSERT_TRUE(add_delta(store_, "base", "web@4", scattered(memory::kMappableRunsMax + 1)).ok());
  int folds = 0;
  memory::set_seal_step_hook([&](std::string_view step) {
    if (step != "write-memory" || folds++ != 0) return;
    EXPECT_TRUE(add_delta(store_, "web@4", "web@5", {{1, 7}}).ok());
    EXPECT_TRUE(add_delta(store_, "web@5", "web@6", {{1, 8}}).ok());
    EXPECT_TRUE(store_.squash("web@6").ok());
    EXPECT_TRUE(store_.remove("web@5").ok());
  });
  start();
  ASSERT_TRUE(folded("web@6"));
  EXPECT_EQ(folds, 2);
  EXPECT_TRUE(store_.find("web@4")->is_delta()) << "given up";
  EXPECT_TRUE(store_.remove("web@4").ok()) << "nothing lies on it, nothing pins it";
  EXPECT_EQ(entries_of(dir_.path()), (Names{"base", "web@6"}));
}

TEST_F(BackgroundFoldTest, WhatIsNotFoldedIsNotLetGo) {
  start();
  EXPECT_FALSE(folds_->let_go("base"));
  EXPECT_FALSE(folds_->let_go(""));
}

TEST_F(BackgroundFoldTest, LetGoGivesUpTheFoldUnderWay) {
  std::latch folding(1);
  std::latch asked(1);
  memory::set_seal_step_hook([&](std::string_view step) {
    if (step == "write-memory") folding.count_down();
    if (step == "fsync-memory") ADD_FAILURE() << "it was to give up before";
    if (step == "write-memory") asked.wait();
  });
  ASSERT_TRUE(add_delta(store_, "base", "web", scattered(memory::kMappableRunsMax + 1)).ok());
  start({.rest = std::chrono::hours(1), .retry = std::chrono::hours(1)});
  folding.wait();
  auto gone = std::async(std::launch::async, [&] { return folds_->let_go("web"); });
  ASSERT_TRUE(soon([&] { return folds_->state("web") == "folding, given up"; }));
  asked.count_down();
  EXPECT_TRUE(gone.get());
  EXPECT_TRUE(store_.find("web")->is_delta());
  EXPECT_EQ(folds_->state("web"), "waiting") << "should it stay";
  EXPECT_TRUE(store_.remove("web").ok());
}

TEST_F(BackgroundFoldTest, WhatIsRemovedBeforeItsTurnIsForgotten) {
  std::latch removed(1);
  memory::set_seal_step_hook([&](std::string_view step) {
    if (step == "write-memory") removed.wait();
  });
  start();
  ASSERT_TRUE(add_delta(store_, "base", "first", scattered(memory::kMappableRunsMax + 1)).ok());
  ASSERT_TRUE(soon([&] { return folds_->state("first") == "folding"; }));
  ASSERT_TRUE(add_delta(store_, "base", "second", {{1, 7}}).ok());
  ASSERT_TRUE(store_.remove("second").ok());
  removed.count_down();
  ASSERT_TRUE(folded("first"));
  EXPECT_TRUE(soon([&] { return folds_->state("second").empty(); }));
  EXPECT_EQ(entries_of(dir_.path()), (Names{"base", "first"}));
}

TEST_F(BackgroundFoldTest, DamageIsSaidAndNotTriedAgain) {
  const auto info = add_delta(store_, "base", "web", scattered(memory::kMappableRunsMax + 1));
  ASSERT_TRUE(info.ok());
  const std::filesystem::path hashes = info->directory / "hashes";
  ASSERT_EQ(::chmod(hashes.c_str(), 0600), 0);
  const UniqueFd file = *open_file(hashes, O_RDWR);
  const std::byte wrong{0x5a};
  ASSERT_TRUE(write_all(file.get(), std::span(&wrong, 1), 100).ok());
  start();
  ASSERT_TRUE(soon([&] { return folds_->state("web").starts_with("failed: "); }));
  EXPECT_NE(folds_->state("web").find("web"), std::string::npos);
}

TEST_F(BackgroundFoldTest, StoppedInTheMiddleItLeavesTheDeltaAsItWas) {
  ASSERT_TRUE(add_delta(store_, "base", "web", scattered(memory::kMappableRunsMax + 1)).ok());
  std::latch folding(1);
  memory::set_seal_step_hook([&](std::string_view step) {
    if (step == "write-memory") folding.count_down();
  });
  start();
  folding.wait();
  folds_.reset();
  EXPECT_EQ(entries_of(dir_.path()), (Names{"base", "web"}));
  EXPECT_EQ(store_.verify("web")->detail, "");
}

TEST_F(BackgroundFoldTest, KilledBeforeAnyStepTheNextStartFolds) {
  const Writes writes = scattered(memory::kMappableRunsMax + 1);
  for (const std::string step :
       {"write-hashes", "fsync-hashes", "write-memory", "fsync-memory", "link-delta", "link-machine", "link-pin",
        "write-manifest", "fsync-manifest", "fsync-staging", "exchange", "fsync-store", "remove-old"}) {
    const testing::TempDir dir("/dev/shm");
    TemplateStore store = *TemplateStore::open(dir.path());
    ASSERT_TRUE(store_template(store, wanted_template("base"), test_memory(1)).ok());
    ASSERT_TRUE(add_delta(store, "base", "web", writes).ok());
    const auto before = store.find("web");
    const int status = testing::status_of_child([&] {
      memory::set_seal_step_hook([&](std::string_view at) {
        if (at == step) ::raise(SIGKILL);
      });
      const auto folds = BackgroundFold::start(store, kAtOnce);
      (void)soon([] { return false; });
    });
    ASSERT_TRUE(testing::was_killed(status)) << step;
    EXPECT_EQ(content_of(store, "web"), after(writes)) << step;
    ASSERT_TRUE(store.sweep().ok());
    const auto folds = std::move(*BackgroundFold::start(store, kAtOnce));
    ASSERT_TRUE(soon([&] { return !store.find("web")->is_delta() && folds->state("web").empty(); })) << step;
    EXPECT_EQ(store.find("web")->digest, before->digest) << step;
    EXPECT_EQ(content_of(store, "web"), after(writes)) << step;
    EXPECT_EQ(store.verify("web")->detail, "") << step;
    EXPECT_EQ(entries_of(dir.path()), (Names{"base", "web"})) << step;
  }
}

std::string fold_on_a_full_disk(const std::filesystem::path& directory) {
  const auto said = std::make_shared<std::ostringstream>();
  spdlog::set_default_logger(
      std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(*said)));
  TemplateStore store = *TemplateStore::open(directory);
  auto wanted = wanted_template("base");
  wanted.bytes_expected = kMiB;
  if (!store_template(store, wanted, test_memory(1)).ok()) return "base";
  if (!add_delta(store, "base", "web", scattered(memory::kMappableRunsMax + 1)).ok()) return "delta";
  UniqueFd ballast = *open_file(directory / "ballast", O_RDWR | O_CREAT);
  const std::vector<std::byte> block(kPageBytes, std::byte{1});
  for (std::uint64_t at = 0; write_all(ballast.get(), block, at).ok();) at += kPageBytes;
  {
    const auto folds = std::move(*BackgroundFold::start(store, kAtOnce));
    if (!soon([&] { return folds->state("web").starts_with("put off: "); })) return "state: " + folds->state("web");
    if (!store.find("web")->is_delta()) return "folded all the same";
    if (::ftruncate(ballast.get(), 0) != 0) return "ftruncate";
    if (!soon([&] { return !store.find("web")->is_delta() && folds->state("web").empty(); })) return "not folded";
  }
  if (store.verify("web")->detail != "") return "damaged";
  const std::string log = said->str();
  const std::string warning = "template web is not folded for now";
  const std::size_t first = log.find(warning);
  if (first == std::string::npos || log.find(warning, first + 1) != std::string::npos) return "said not once: " + log;
  return log.find("make room") == std::string::npos ? "no fix: " + log : "";
}

TEST(BackgroundFoldOnAFullDisk, IsPutOffSaidOnceAndDoneWhenThereIsRoom) {
  const testing::TempDir dir;
  const std::string wrong = testing::on_tmpfs(dir.path(), "size=12m", [&] { return fold_on_a_full_disk(dir.path()); });
  SKIP_OR_EXPECT_GOOD(wrong);
}

TEST(BackgroundFoldStart, WithoutItsStoreItSaysSo) {
  const testing::TempDir dir;
  TemplateStore store = *TemplateStore::open(dir.path() / "templates");
  std::filesystem::remove(store.directory());
  const auto folds = BackgroundFold::start(store);
  ASSERT_FALSE(folds.ok());
  EXPECT_NE(folds.error().message().find(store.directory().string()), std::string::npos);
}

}  // namespace
}  // namespace fvmm::daemon
