#include "daemon/fold_queue.h"

#include <gtest/gtest.h>

namespace fvmm::daemon {
namespace {

using std::chrono::hours;
using std::chrono::minutes;
using std::chrono::seconds;

const SteadyTime kStart{seconds(1000)};

TEST(FoldQueue, ATemplateOfAPersonIsDueAtOnceAndOnlyOnce) {
  FoldQueue queue{FoldTimes{}};
  EXPECT_EQ(queue.take(kStart), std::nullopt);
  EXPECT_EQ(queue.next_due(), std::nullopt);
  ASSERT_TRUE(queue.note("web", kStart));
  EXPECT_EQ(queue.state("web"), "waiting");
  EXPECT_EQ(queue.next_due(), kStart);
  EXPECT_EQ(queue.take(kStart), "web");
  EXPECT_EQ(queue.state("web"), "folding");
  EXPECT_EQ(queue.take(kStart), std::nullopt);
  ASSERT_TRUE(queue.note("web", kStart)) << "its own exchange";
  EXPECT_EQ(queue.take(kStart), std::nullopt);
  queue.done("web");
  EXPECT_EQ(queue.state("web"), "");
  EXPECT_EQ(queue.next_due(), std::nullopt);
}

TEST(FoldQueue, OfALineOnlyTheNewestIsDueOnceTheLineRests) {
  const FoldTimes times;
  FoldQueue queue(times);
  queue.note("web@4", kStart);
  queue.note("web@10", kStart + seconds(1));
  queue.note("web@9", kStart + seconds(2));
  queue.note("other@9", kStart + seconds(3));
  EXPECT_EQ(queue.state("web@4"), "");
  EXPECT_EQ(queue.state("web@9"), "");
  EXPECT_EQ(queue.state("web@10"), "waiting");
  const SteadyTime due = kStart + seconds(1) + times.rest;
  EXPECT_EQ(queue.next_due(), due);
  EXPECT_EQ(queue.take(due - std::chrono::nanoseconds(1)), std::nullopt);
  EXPECT_EQ(queue.take(due), "web@10");
  EXPECT_EQ(queue.take(due), std::nullopt) << "the other line has not rested";
  EXPECT_EQ(queue.take(due + seconds(2)), "other@9");
}

TEST(FoldQueue, ANewerGenerationTakesThePlaceOfTheOneThatIsFolded) {
  const FoldTimes times;
  FoldQueue queue(times);
  queue.note("web@4", kStart);
  ASSERT_EQ(queue.take(kStart + times.rest), "web@4");
  EXPECT_FALSE(queue.superseded("web@4"));
  queue.note("web@5", kStart + times.rest);
  EXPECT_TRUE(queue.superseded("web@4"));
  queue.again("web@4", kStart + times.rest);
  queue.failed("web@4", "why");
  EXPECT_FALSE(queue.put_off("web@4", "why", kStart + times.rest));
  queue.done("web@4");
  EXPECT_EQ(queue.state("web@4"), "");
  EXPECT_EQ(queue.state("web@5"), "waiting");
  EXPECT_EQ(queue.next_due(), kStart + 2 * times.rest);
}

TEST(FoldQueue, AGenerationNumberPast64BitsIsAsNewAsCanBe) {
  FoldQueue queue{FoldTimes{}};
  queue.note("web@99999999999999999999", kStart);
  queue.note("web@7", kStart);
  EXPECT_EQ(queue.state("web@99999999999999999999"), "waiting");
  EXPECT_EQ(queue.state("web@7"), "");
}

TEST(FoldQueue, PutOffTheWaitDoublesUpToItsLimitAndIsNewsOnce) {
  FoldQueue queue({.rest = hours(1), .retry = minutes(1), .retry_max = minutes(5)});
  SteadyTime now = kStart;
  queue.note("web", now);
  bool first = true;
  for (const auto wait : {minutes(1), minutes(2), minutes(4), minutes(5), minutes(5)}) {
    ASSERT_EQ(queue.take(now), "web");
    EXPECT_EQ(queue.put_off("web", "full", now), first);
    first = false;
    EXPECT_EQ(queue.state("web"), "put off: full");
    EXPECT_EQ(queue.next_due(), now + wait);
    now += wait;
  }
}

TEST(FoldQueue, AFailureStaysUntilTheGenerationComesAnew) {
  FoldQueue queue{FoldTimes{}};
  queue.note("web", kStart);
  ASSERT_EQ(queue.take(kStart), "web");
  queue.failed("web", "damaged");
  EXPECT_EQ(queue.state("web"), "failed: damaged");
  EXPECT_EQ(queue.take(kStart + hours(100)), std::nullopt);
  EXPECT_EQ(queue.next_due(), std::nullopt);
  queue.note("web", kStart);
  EXPECT_EQ(queue.take(kStart), "web");
}

TEST(FoldQueue, InterruptedItIsTriedOnceMoreAfterTheShortestWait) {
  const FoldTimes times;
  FoldQueue queue(times);
  queue.note("web", kStart);
  ASSERT_EQ(queue.take(kStart), "web");
  queue.again("web", kStart);
  EXPECT_EQ(queue.take(kStart + times.retry - seconds(1)), std::nullopt);
  EXPECT_EQ(queue.take(kStart + times.retry), "web");
}

TEST(FoldQueue, ThereIsRoomForSoManyAndKnownOnesAreNotedStill) {
  FoldQueue queue{FoldTimes{}};
  for (std::size_t i = 0; i < kFoldsWaitingMax; ++i) ASSERT_TRUE(queue.note("t" + std::to_string(i), kStart));
  EXPECT_FALSE(queue.note("one-more", kStart));
  EXPECT_EQ(queue.state("one-more"), "");
  EXPECT_TRUE(queue.note("t7", kStart));
  queue.done("t7");
  EXPECT_TRUE(queue.note("one-more", kStart));
}

}  // namespace
}  // namespace fvmm::daemon
