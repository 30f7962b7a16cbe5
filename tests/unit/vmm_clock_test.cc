// Where guest time must stand after a pause: the arithmetic, without KVM.
#include "vmm/clock.h"

#include <gtest/gtest.h>

#include <limits>

#include "vmm/vcpu_state.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint32_t kKhz = 2'000'000;  // 2 ticks a nanosecond
constexpr std::uint64_t kGuestTsc = 1'000'000'000'000;
constexpr std::uint64_t kSavedNs = 1'700'000'000'000'000'000;
constexpr std::uint64_t kSavedHostTsc = 5'000'000'000;

v1::ClockState saved() {
  v1::ClockState state;
  state.set_boot_id("boot-a");
  state.set_realtime_ns(kSavedNs);
  state.set_host_tsc(kSavedHostTsc);
  return state;
}

TEST(PassedNs, IsTheDifferenceAndNeverNegative) {
  EXPECT_EQ(passed_ns(saved(), kSavedNs + 7), 7U);
  EXPECT_EQ(passed_ns(saved(), kSavedNs), 0U);
  EXPECT_EQ(passed_ns(saved(), kSavedNs - 1), 0U);
  EXPECT_EQ(passed_ns(saved(), 0), 0U);
}

TEST(PassedNs, IsZeroWithoutASavedRealtime) {
  v1::ClockState state = saved();
  state.set_realtime_ns(0);
  EXPECT_EQ(passed_ns(state, kSavedNs), 0U);
}

TEST(PlanTsc, SameBootKeepsTheOffset) {
  const TscPlan plan = plan_tsc(saved(), kGuestTsc, kKhz, "boot-a", kSavedHostTsc + 1, kSavedNs + 1'000'000'000);
  EXPECT_TRUE(plan.keep_offset);
}

TEST(PlanTsc, SameBootWithAHostTscThatWentBackGoesByRealtime) {
  const TscPlan plan = plan_tsc(saved(), kGuestTsc, kKhz, "boot-a", kSavedHostTsc - 1, kSavedNs + 1'000);
  EXPECT_FALSE(plan.keep_offset);
  EXPECT_EQ(plan.guest_tsc, kGuestTsc + 2'000);
}

TEST(PlanTsc, AnotherHostAddsTheRealTimeThatPassed) {
  const TscPlan plan = plan_tsc(saved(), kGuestTsc, kKhz, "boot-b", 1, kSavedNs + 3'000'000'000);
  EXPECT_FALSE(plan.keep_offset);
  EXPECT_EQ(plan.guest_tsc, kGuestTsc + 6'000'000'000);
}

TEST(PlanTsc, AClockBehindTheSourceCountsAsNoTime) {
  const TscPlan plan = plan_tsc(saved(), kGuestTsc, kKhz, "boot-b", 1, kSavedNs - 20'000'000'000);
  EXPECT_EQ(plan.guest_tsc, kGuestTsc);
}

TEST(PlanTsc, AYearDoesNotOverflow) {
  constexpr std::uint64_t kYearNs = 365ULL * 86'400 * 1'000'000'000;
  const TscPlan plan = plan_tsc(saved(), kGuestTsc, 5'000'000, "boot-b", 1, kSavedNs + kYearNs);
  EXPECT_EQ(plan.guest_tsc, kGuestTsc + 5 * kYearNs);
}

TEST(TscFits, WithinTheToleranceOrScaled) {
  constexpr std::uint32_t kHost = 2'000'000;
  constexpr std::uint32_t kTolerance = 500;  // 250 ppm
  EXPECT_TRUE(tsc_khz_fits(kHost, kHost, false));
  EXPECT_TRUE(tsc_khz_fits(kHost + kTolerance, kHost, false));
  EXPECT_FALSE(tsc_khz_fits(kHost + kTolerance + 1, kHost, false));
  EXPECT_TRUE(tsc_khz_fits(kHost - kTolerance, kHost, false));
  EXPECT_FALSE(tsc_khz_fits(kHost - kTolerance - 1, kHost, false));
  EXPECT_TRUE(tsc_khz_fits(kHost * 2, kHost, true));
  EXPECT_FALSE(tsc_khz_fits(0, kHost, true));
}

TEST(PitTime, TravelsAsAgeAndGrowsByThePause) {
  constexpr std::int64_t kSourceNow = 9'000'000'000;
  constexpr std::int64_t kTargetNow = 100'000'000'000;
  const std::int64_t age = pit_age_ns(kSourceNow - 25'000, kSourceNow);
  EXPECT_EQ(age, 25'000);
  EXPECT_EQ(pit_load_time_ns(age, 4'000'000, kTargetNow), kTargetNow - 25'000 - 4'000'000);
}

TEST(PitTime, AFutureLoadTimeIsNow) {
  EXPECT_EQ(pit_age_ns(1'001, 1'000), 0);
  EXPECT_EQ(pit_age_ns(1'000, 1'000), 0);
}

TEST(PitTime, MayLieBeforeTheHostsBoot) {
  EXPECT_EQ(pit_load_time_ns(5'000, 0, 1'000), -4'000);
  EXPECT_EQ(pit_age_ns(-4'000, 1'000), 5'000);
}

TEST(PitTime, HostileValuesDoNotWrap) {
  constexpr auto kMax = std::numeric_limits<std::int64_t>::max();
  constexpr auto kMin = std::numeric_limits<std::int64_t>::min();
  EXPECT_LT(pit_load_time_ns(kMax, std::numeric_limits<std::uint64_t>::max(), 1'000), 1'000);
  EXPECT_EQ(pit_load_time_ns(kMin, 0, 1'000), 1'000);
}

TEST(BootId, IsTheHostsAndStable) {
  const auto first = read_boot_id();
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->size(), 36U);
  EXPECT_EQ(*first, *read_boot_id());
}

}  // namespace
}  // namespace fvmm::vmm
