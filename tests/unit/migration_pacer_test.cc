#include "migration/pacer.h"

#include <gtest/gtest.h>

#include <thread>

namespace fvmm::migration {
namespace {

TEST(Pacer, WithoutALimitEverythingPassesAtOnce) {
  Pacer pacer(0);
  const Deadline past = Deadline::after(std::chrono::milliseconds(0));
  EXPECT_TRUE(pacer.pass(1ULL << 40, past));
  EXPECT_TRUE(pacer.pass(1ULL << 40, past));
}

// No upper bound is asserted: a loaded machine may be late, but never early.
TEST(Pacer, BytesNeverPassFasterThanTheRate) {
  Pacer pacer(1'000'000);
  const auto began = std::chrono::steady_clock::now();
  const Deadline deadline = Deadline::after(std::chrono::minutes(1));
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(pacer.pass(10'000, deadline));
  ASSERT_TRUE(pacer.settle(deadline));
  EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(50));
}

TEST(Pacer, TurnAfterTheDeadlineIsRefusedAtOnceAndTakesNoTurn) {
  Pacer pacer(1);
  const Deadline deadline = Deadline::after(std::chrono::minutes(1));
  ASSERT_TRUE(pacer.pass(3600, deadline));
  EXPECT_EQ(pacer.pass(1, deadline).error().code(), Errc::kDeadlineExceeded);
  EXPECT_EQ(pacer.settle(deadline).error().code(), Errc::kDeadlineExceeded);
}

TEST(Pacer, CancelWakesWhoWaits) {
  Pacer pacer(1);
  const Deadline deadline = Deadline::after(std::chrono::hours(2));
  ASSERT_TRUE(pacer.pass(3600, deadline));
  std::thread other([&] { pacer.cancel(); });
  EXPECT_EQ(pacer.pass(1, deadline).error().code(), Errc::kCancelled);
  other.join();
  EXPECT_EQ(pacer.pass(1, deadline).error().code(), Errc::kCancelled) << "and stays so";
}

}  // namespace
}  // namespace fvmm::migration
