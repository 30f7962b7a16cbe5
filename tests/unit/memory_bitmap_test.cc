#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "memory/dirty.h"

namespace fvmm::memory {
namespace {

using Ranges = std::vector<PageRange>;

TEST(Bitmap, SetsTestsAndClearsTheLastBitOfAPartialWord) {
  Bitmap bitmap(65);
  bitmap.set(64);
  EXPECT_TRUE(bitmap.test(64));
  EXPECT_FALSE(bitmap.test(63));
  EXPECT_EQ(bitmap.count(), 1U);
  bitmap.clear(64);
  EXPECT_FALSE(bitmap.any());
}

TEST(Bitmap, BitsPastTheEndStayZeroWhenAllAreSet) {
  for (const std::uint64_t pages : {1U, 63U, 64U, 65U, 128U, 130U}) {
    Bitmap bitmap(pages);
    bitmap.set_all();
    EXPECT_EQ(bitmap.count(), pages);
    EXPECT_EQ(bitmap.ranges(pages), (Ranges{{0, pages}}));
    bitmap.clear_all();
    EXPECT_EQ(bitmap.count(), 0U);
  }
}

TEST(Bitmap, EmptyBitmapHasNoRuns) {
  EXPECT_TRUE(Bitmap(0).ranges(1).empty());
  EXPECT_TRUE(Bitmap(200).ranges(1).empty());
}

TEST(BitmapDeathTest, RefusesWhatLiesOutside) {
  Bitmap bitmap(65);
  EXPECT_DEATH(bitmap.set(65), "");
  EXPECT_DEATH(bitmap.clear(65), "");
  EXPECT_DEATH((void)bitmap.test(65), "");
  EXPECT_DEATH(bitmap.set_range({64, 2}), "");
  EXPECT_DEATH(bitmap.set_range({1, ~std::uint64_t{0}}), "");
  EXPECT_DEATH((void)bitmap.ranges(0), "");
  EXPECT_DEATH(bitmap.merge(Bitmap(64)), "");
}

TEST(Bitmap, SetsRangesAcrossWords) {
  Bitmap bitmap(300);
  bitmap.set_range({62, 140});
  bitmap.set_range({299, 1});
  bitmap.set_range({10, 0});
  EXPECT_EQ(bitmap.count(), 141U);
  EXPECT_EQ(bitmap.ranges(1000), (Ranges{{62, 140}, {299, 1}}));
}

TEST(Bitmap, SplitsRunsAtTheLimitAndNotBefore) {
  Bitmap bitmap(300);
  bitmap.set_range({60, 128});
  EXPECT_EQ(bitmap.ranges(128), (Ranges{{60, 128}}));
  EXPECT_EQ(bitmap.ranges(127), (Ranges{{60, 127}, {187, 1}}));
  EXPECT_EQ(bitmap.ranges(64), (Ranges{{60, 64}, {124, 64}}));
}

TEST(Bitmap, RunsEqualThoseOfABitByBitWalk) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 200; ++round) {
    const std::uint64_t pages = 1 + random() % 400;
    const std::uint64_t runs_max = 1 + random() % 100;
    Bitmap bitmap(pages);
    for (int i = 0; i < 8; ++i) {
      const std::uint64_t first = random() % pages;
      bitmap.set_range({first, random() % (pages - first + 1)});
    }
    for (int i = 0; i < 20; ++i) bitmap.clear(random() % pages);
    Ranges expected;
    for (std::uint64_t page = 0; page < pages; ++page) {
      if (!bitmap.test(page)) continue;
      const bool extends = !expected.empty() && expected.back().first + expected.back().count == page;
      if (extends && expected.back().count < runs_max) {
        ++expected.back().count;
      } else {
        expected.push_back({page, 1});
      }
    }
    EXPECT_EQ(bitmap.ranges(runs_max), expected) << "round " << round;
  }
}

TEST(Bitmap, MergeKeepsBothSides) {
  Bitmap left(100);
  Bitmap right(100);
  left.set(3);
  right.set(99);
  left.merge(right);
  EXPECT_EQ(left.ranges(9), (Ranges{{3, 1}, {99, 1}}));
  EXPECT_EQ(right.count(), 1U);
}

TEST(AtomicBitmap, DrainMovesBitsAndKeepsWhatTheTargetHad) {
  AtomicBitmap marks(130);
  Bitmap out(130);
  out.set(5);
  marks.set(129);
  marks.set_range({62, 4});
  marks.drain_into(out);
  EXPECT_EQ(out.ranges(64), (Ranges{{5, 1}, {62, 4}, {129, 1}}));
  Bitmap again(130);
  marks.drain_into(again);
  EXPECT_FALSE(again.any());
}

TEST(AtomicBitmapDeathTest, RefusesWhatLiesOutside) {
  AtomicBitmap marks(64);
  Bitmap other(65);
  EXPECT_DEATH(marks.set(64), "");
  EXPECT_DEATH(marks.set_range({63, 2}), "");
  EXPECT_DEATH(marks.drain_into(other), "");
}

// Each bit is set once, by one of two threads, while the owner drains: in the end all have arrived.
TEST(AtomicBitmap, ConcurrentSetAndDrainLoseNoBit) {
  constexpr std::uint64_t kPages = 64 * 512 + 7;
  AtomicBitmap marks(kPages);
  Bitmap all(kPages);
  std::atomic<int> running{2};
  const auto set_every_second = [&](std::uint64_t first) {
    for (std::uint64_t page = first; page < kPages; page += 2) marks.set(page);
    running.fetch_sub(1);
  };
  std::thread even(set_every_second, 0);
  std::thread odd(set_every_second, 1);
  while (running.load() > 0) marks.drain_into(all);
  even.join();
  odd.join();
  marks.drain_into(all);
  EXPECT_EQ(all.count(), kPages);
}

// A bit taken from the marks shows the write that came before it: this is what "write first, then mark" is for.
TEST(AtomicBitmap, WhoeverTakesABitSeesTheWriteBeforeIt) {
  constexpr std::uint64_t kPages = 4096;
  AtomicBitmap marks(kPages);
  std::vector<std::uint64_t> memory(kPages, 0);
  std::thread device([&] {
    for (std::uint64_t page = 0; page < kPages; ++page) {
      memory[page] = page + 1;
      marks.set(page);
    }
  });
  std::uint64_t seen = 0;
  while (seen < kPages) {
    Bitmap harvest(kPages);
    marks.drain_into(harvest);
    for (const PageRange& run : harvest.ranges(64)) {
      for (std::uint64_t page = run.first; page < run.first + run.count; ++page) {
        EXPECT_EQ(memory[page], page + 1);
        ++seen;
      }
    }
  }
  device.join();
}

class FakeLog final : public DirtySource {
 public:
  Status harvest(Bitmap& out) override {
    out.merge(bits);
    bits.clear_all();
    if (fail) return Error(Errc::kIo, "KVM_GET_DIRTY_LOG", EFAULT);
    return {};
  }
  Bitmap bits{100};
  bool fail = false;
};

TEST(DirtyTracker, EveryReaderGetsEveryBitOnce) {
  FakeLog log;
  AtomicBitmap devices(100);
  DirtyTracker tracker(100, &log, devices);
  const auto round = tracker.add_reader();
  const auto generation = tracker.add_reader();

  log.bits.set(1);
  devices.set(2);
  ASSERT_TRUE(tracker.harvest().ok());
  EXPECT_EQ(round->take().ranges(9), (Ranges{{1, 2}}));
  EXPECT_FALSE(round->pending().any());

  log.bits.set(50);
  ASSERT_TRUE(tracker.harvest().ok());
  EXPECT_EQ(round->take().ranges(9), (Ranges{{50, 1}}));
  EXPECT_EQ(generation->pending().ranges(9), (Ranges{{1, 2}, {50, 1}}));
  generation->reset();
  EXPECT_FALSE(generation->pending().any());
}

TEST(DirtyTracker, ReaderSeesOnlyWhatComesAfterIt) {
  AtomicBitmap devices(100);
  DirtyTracker tracker(100, nullptr, devices);
  devices.set(1);
  ASSERT_TRUE(tracker.harvest().ok());
  const auto late = tracker.add_reader();
  devices.set(2);
  ASSERT_TRUE(tracker.harvest().ok());
  EXPECT_EQ(late->pending().ranges(9), (Ranges{{2, 1}}));
}

TEST(DirtyTracker, GoneReaderIsNotFed) {
  AtomicBitmap devices(100);
  DirtyTracker tracker(100, nullptr, devices);
  const auto stays = tracker.add_reader();
  tracker.add_reader().reset();
  devices.set(7);
  ASSERT_TRUE(tracker.harvest().ok());
  EXPECT_TRUE(stays->pending().test(7));
}

TEST(DirtyTracker, FailedSendPutsItsBitsBack) {
  AtomicBitmap devices(100);
  DirtyTracker tracker(100, nullptr, devices);
  const auto reader = tracker.add_reader();
  devices.set(7);
  ASSERT_TRUE(tracker.harvest().ok());
  const Bitmap sending = reader->take();
  devices.set(8);
  ASSERT_TRUE(tracker.harvest().ok());
  reader->put_back(sending);
  EXPECT_EQ(reader->pending().ranges(9), (Ranges{{7, 2}}));
}

TEST(DirtyTracker, TakeIntoOverwritesItsTarget) {
  AtomicBitmap devices(100);
  DirtyTracker tracker(100, nullptr, devices);
  const auto reader = tracker.add_reader();
  Bitmap out(100);
  out.set(99);
  devices.set(7);
  ASSERT_TRUE(tracker.harvest().ok());
  reader->take_into(out);
  EXPECT_EQ(out.ranges(9), (Ranges{{7, 1}}));
  EXPECT_FALSE(reader->pending().any());
}

TEST(DirtyTracker, FailingSourceLosesNothingItDelivered) {
  FakeLog log;
  AtomicBitmap devices(100);
  DirtyTracker tracker(100, &log, devices);
  const auto reader = tracker.add_reader();
  log.bits.set(1);
  log.fail = true;
  devices.set(2);
  const Status status = tracker.harvest();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().sys_errno(), EFAULT);
  EXPECT_EQ(reader->pending().ranges(9), (Ranges{{1, 2}}));
}

TEST(DirtyTrackerDeathTest, RefusesMarksOfAnotherSize) {
  AtomicBitmap devices(99);
  EXPECT_DEATH(DirtyTracker(100, nullptr, devices), "");
}

}  // namespace
}  // namespace fvmm::memory
