#include "migration/policy.h"

#include <gtest/gtest.h>

namespace fvmm::migration {
namespace {

using std::chrono::milliseconds;

TEST(Policy, GenerationIsDueWhenTheIntervalHasPassed) {
  const ReplicationPolicy policy{.interval = milliseconds(100)};
  EXPECT_FALSE(generation_is_due(policy, {.since_instant = milliseconds(100) - std::chrono::nanoseconds(1)}));
  EXPECT_TRUE(generation_is_due(policy, {.since_instant = milliseconds(100)}));
}

TEST(Policy, DirtBudgetMakesItDueEarly) {
  ReplicationPolicy policy{.interval = milliseconds(100), .dirty_pages_max = 10};
  EXPECT_FALSE(generation_is_due(policy, {.since_instant = milliseconds(1), .dirty_pages = 9}));
  EXPECT_TRUE(generation_is_due(policy, {.since_instant = milliseconds(1), .dirty_pages = 10}));
  policy.dirty_pages_max = 0;
  EXPECT_FALSE(generation_is_due(policy, {.since_instant = milliseconds(1), .dirty_pages = 1'000'000})) << "no budget";
}

TEST(Policy, NeverMoreInFlightThanTheLimit) {
  const ReplicationPolicy policy{.interval = milliseconds(100), .dirty_pages_max = 1};
  ReplicationPace pace{.since_instant = std::chrono::hours(1), .in_flight = kInFlightMax - 1, .dirty_pages = 1000};
  EXPECT_TRUE(generation_is_due(policy, pace));
  pace.in_flight = kInFlightMax;
  EXPECT_FALSE(generation_is_due(policy, pace));
}

TEST(Policy, SlowLinkOrPeerStretchesTheInterval) {
  const ReplicationPolicy policy{.interval = milliseconds(100)};
  EXPECT_EQ(interval_in_force(policy, {.round_trip = milliseconds(40)}), milliseconds(100));
  EXPECT_EQ(interval_in_force(policy, {.round_trip = milliseconds(400)}), milliseconds(400));
  EXPECT_EQ(interval_in_force(policy, {.round_trip = std::chrono::hours(9)}), kReplicateIntervalMax);
  EXPECT_EQ(interval_in_force({.interval = milliseconds(0)}, {}), kReplicateIntervalMin);
}

TEST(Policy, MaximumLagShortensTheIntervalByTheRoundTrip) {
  const ReplicationPolicy policy{.interval = milliseconds(10'000), .lag_max = milliseconds(1000)};
  EXPECT_EQ(interval_in_force(policy, {}), milliseconds(1000));
  EXPECT_EQ(interval_in_force(policy, {.round_trip = milliseconds(300)}), milliseconds(700));
  EXPECT_TRUE(generation_is_due(policy, {.since_instant = milliseconds(700), .round_trip = milliseconds(300)}));
  EXPECT_FALSE(generation_is_due(policy, {.since_instant = milliseconds(699), .round_trip = milliseconds(300)}));
  // What takes longer than the lag allows cannot be had more often than it takes.
  EXPECT_EQ(interval_in_force(policy, {.round_trip = milliseconds(800)}), milliseconds(800));
  EXPECT_EQ(interval_in_force(policy, {.round_trip = milliseconds(2000)}), milliseconds(2000));
  const ReplicationPolicy loose{.interval = milliseconds(100), .lag_max = milliseconds(5000)};
  EXPECT_EQ(interval_in_force(loose, {.round_trip = milliseconds(40)}), milliseconds(100)) << "it makes nothing longer";
}

TEST(Policy, LagIsJudgedByTheLimitOrByIntervals) {
  ReplicationPolicy policy{.interval = milliseconds(100)};
  EXPECT_FALSE(is_lagging(policy, milliseconds(100) * kLagIntervals));
  EXPECT_TRUE(is_lagging(policy, milliseconds(100) * kLagIntervals + milliseconds(1)));
  policy.lag_max = milliseconds(150);
  EXPECT_FALSE(is_lagging(policy, milliseconds(150)));
  EXPECT_TRUE(is_lagging(policy, milliseconds(151)));
}

}  // namespace
}  // namespace fvmm::migration
