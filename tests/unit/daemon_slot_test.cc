#include <gtest/gtest.h>

#include <thread>

#include "daemon/worker_slot.h"

namespace fvmm::daemon {
namespace {

TEST(GuestSlot, ALookNeitherWaitsNorMakesOthersHurry) {
  GuestSlot slot;
  auto command = slot.take("replicate", GuestSlot::Stay::kBrief);
  ASSERT_TRUE(command);
  EXPECT_FALSE(slot.take_if_at_rest("info"));
  EXPECT_FALSE(slot.wanted());
}

TEST(GuestSlot, ACommandWaitsForALookToEnd) {
  GuestSlot slot;
  auto look = slot.take_if_at_rest("info");
  ASSERT_TRUE(look);
  std::thread command([&] { EXPECT_TRUE(slot.take("migrate")); });
  while (!slot.wanted()) std::this_thread::yield();
  look.reset();
  command.join();
  EXPECT_TRUE(slot.take_if_at_rest("info")) << "all have put it back";
}

TEST(GuestSlot, ALongCommandIsNamedToTheNext) {
  GuestSlot slot;
  auto first = slot.take("migrate");
  ASSERT_TRUE(first);
  const auto second = slot.take("pause");
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(second.error().message().find("migrate"), std::string::npos);
}

}  // namespace
}  // namespace fvmm::daemon
