#include "devices/i8042.h"

#include <gtest/gtest.h>

#include <array>

#include "devices/bus.h"

namespace fvmm::devices {
namespace {

struct Controller : ::testing::Test {
  Controller() { controller.attach(bus); }
  void out(std::uint64_t port, std::uint8_t value) {
    const std::array bytes{static_cast<std::byte>(value)};
    bus.write(port, bytes);
  }
  std::uint8_t in(std::uint64_t port) {
    std::array<std::byte, 1> bytes{};
    bus.read(port, bytes);
    return std::to_integer<std::uint8_t>(bytes[0]);
  }

  int resets = 0;
  Bus bus{"port"};
  I8042 controller{[this] { ++resets; }};
};

TEST_F(Controller, PulseOfTheResetLineCallsBackOnce) {
  out(0x64, 0xfe);
  EXPECT_EQ(resets, 1);
}

TEST_F(Controller, OtherCommandsDoNotReset) {
  for (unsigned command = 0; command < 256; ++command) {
    if (command != 0xfe) out(0x64, static_cast<std::uint8_t>(command));
  }
  out(0x60, 0xfe);  // a byte for the keyboard, not a command
  EXPECT_EQ(resets, 0);
}

TEST_F(Controller, StatusAndDataReadZero) {
  EXPECT_EQ(in(0x64), 0);
  EXPECT_EQ(in(0x60), 0);
  EXPECT_EQ(bus.unclaimed_reads(), 0u);
}

TEST_F(Controller, LeavesThePortsBetweenToOthers) {
  in(0x61);
  EXPECT_EQ(bus.unclaimed_reads(), 1u);
}

TEST_F(Controller, OpeningA20ThroughTheOutputPortDoesNotReset) {
  out(0x64, 0xd1);
  out(0x60, 0xdf);
  EXPECT_EQ(resets, 0);
}

TEST_F(Controller, PullingTheResetLineThroughTheOutputPortResets) {
  out(0x64, 0xd1);
  out(0x60, 0xfe);
  EXPECT_EQ(resets, 1);
}

TEST_F(Controller, ACommandThatWaitsForItsDataSurvivesSaveAndLoad) {
  out(0x64, 0xd1);
  int other_resets = 0;
  I8042 other([&] { ++other_resets; });

  ASSERT_TRUE(other.load(controller.save()).ok());
  other.write(0, std::array{std::byte{0xfe}});

  EXPECT_EQ(other_resets, 1);
}

TEST_F(Controller, RefusesAWaitingCommandThatTakesNoData) {
  DeviceState state = controller.save();
  state.bytes[1] = std::byte{0xfe};
  EXPECT_FALSE(controller.load(state).ok());
}

TEST_F(Controller, StateVersion1IsTheseBytes) {
  out(0x64, 0xd1);
  EXPECT_EQ(controller.save().version, 1u);
  EXPECT_EQ(controller.save().bytes, (std::vector{std::byte{0x03}, std::byte{0xd1}}));
}

}  // namespace
}  // namespace fvmm::devices
