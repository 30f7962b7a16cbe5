#include "devices/bus.h"

#include <gtest/gtest.h>

#include <array>
#include <csignal>
#include <limits>
#include <thread>

#include "support/fake_devices.h"

namespace fvmm::devices {
namespace {

using testing::FakeDevice;

constexpr std::byte kOnes{0xff};

TEST(Bus, DispatchesByOffsetFromTheRangesBase) {
  Bus bus("port");
  FakeDevice low("low");
  FakeDevice high("high");
  bus.add(0x100, 16, low);
  bus.add(0x110, 16, high);
  const std::array value{std::byte{0x5a}};

  bus.write(0x11f, value);

  EXPECT_EQ(high.last_offset, 15u);
  EXPECT_EQ(high.bytes[15], std::byte{0x5a});
  EXPECT_EQ(low.writes, 0);
}

TEST(Bus, OneDeviceMayClaimSeveralRangesWithItsOwnOffsets) {
  Bus bus("port");
  FakeDevice device("two");
  bus.add(0x60, 1, device);
  bus.add(0x64, 1, device, 4);
  std::array<std::byte, 1> out{};

  bus.read(0x64, out);

  EXPECT_EQ(device.last_offset, 4u);
  EXPECT_EQ(bus.save_all().size(), 1u);
}

TEST(Bus, UnclaimedReadsGiveAllOnesAndAreCounted) {
  Bus bus("port");
  std::array<std::byte, 8> out{};

  bus.read(0x80, out);

  for (const std::byte byte : out) EXPECT_EQ(byte, kOnes);
  EXPECT_EQ(bus.unclaimed_reads(), 1u);
  EXPECT_EQ(bus.unclaimed_writes(), 0u);
}

TEST(Bus, UnclaimedWritesAreIgnoredAndCounted) {
  Bus bus("port");
  FakeDevice device("dev");
  bus.add(0x100, 16, device);
  const std::array value{std::byte{1}};

  bus.write(0xff, value);
  bus.write(0x110, value);

  EXPECT_EQ(device.writes, 0);
  EXPECT_EQ(bus.unclaimed_writes(), 2u);
}

TEST(Bus, AnAccessUpToTheLastByteIsClaimedAndOneByteMoreIsNot) {
  Bus bus("port");
  FakeDevice device("dev");
  FakeDevice neighbour("next");
  bus.add(0x100, 16, device);
  bus.add(0x110, 16, neighbour);
  const std::array<std::byte, 4> word{};

  bus.write(0x10c, word);
  bus.write(0x10d, word);

  EXPECT_EQ(device.writes, 1);
  EXPECT_EQ(neighbour.writes, 0);
  EXPECT_EQ(bus.unclaimed_writes(), 1u);
}

TEST(Bus, ARangeMayEndAtTheTopOfTheAddressSpace) {
  constexpr std::uint64_t kTop = std::numeric_limits<std::uint64_t>::max();
  Bus bus("mmio");
  FakeDevice device("top");
  bus.add(kTop - 15, 16, device);
  std::array<std::byte, 2> out{};

  bus.read(kTop - 1, out);
  EXPECT_EQ(bus.unclaimed_reads(), 0u);
  bus.read(kTop, out);
  EXPECT_EQ(bus.unclaimed_reads(), 1u);
}

TEST(Bus, AStringAccessIsOneAccessPerItem) {
  Bus bus("port");
  FakeDevice device("dev");
  bus.add(0x100, 16, device);
  const std::array<std::byte, 6> items{};
  std::array<std::byte, 6> read_back{};

  bus.write_repeated(0x100, 2, items);
  bus.read_repeated(0x200, 3, read_back);

  EXPECT_EQ(device.writes, 3);
  EXPECT_EQ(bus.unclaimed_reads(), 2u);
}

// FVMM_CHECK speaks through the log, not stderr: the signal is the promise.
const ::testing::KilledBySignal kAborts(SIGABRT);

TEST(BusDeathTest, OverlapEmptyRangeWrapAndDoubleIdAbort) {
  Bus bus("port");
  FakeDevice device("dev");
  FakeDevice other("other");
  FakeDevice same_id("dev");
  bus.add(0x100, 16, device);
  EXPECT_EXIT(bus.add(0x10f, 1, other), kAborts, "");
  EXPECT_EXIT(bus.add(0xf1, 16, other), kAborts, "");
  EXPECT_EXIT(bus.add(0x200, 0, other), kAborts, "");
  EXPECT_EXIT(bus.add(std::numeric_limits<std::uint64_t>::max(), 2, other), kAborts, "");
  EXPECT_EXIT(bus.add(0x200, 1, same_id), kAborts, "");
  EXPECT_EXIT(bus.write_repeated(0x100, 4, std::array<std::byte, 6>{}), kAborts, "");
  bus.add(0x110, 1, other);
  bus.add(0xff, 1, other);
}

TEST(BusDeathTest, TakesItsMaximumOfRangesAndNotOneMore) {
  Bus bus("port");
  FakeDevice device("dev");
  for (std::size_t i = 0; i < kBusRangesMax; ++i) bus.add(i, 1, device, i);
  EXPECT_EXIT(bus.add(kBusRangesMax, 1, device), kAborts, "");
}

TEST(Bus, UnclaimedAddressesBeyondTheLogsLimitAreStillCounted) {
  Bus bus("port");
  std::array<std::byte, 1> out{};
  for (std::size_t i = 0; i <= kUnclaimedLoggedMax; ++i) bus.read(0x1000 + i, out);
  EXPECT_EQ(bus.unclaimed_reads(), kUnclaimedLoggedMax + 1);
}

TEST(Bus, SaveAllThenLoadAllGivesEveryDeviceItsState) {
  Bus bus("port");
  FakeDevice a("a");
  FakeDevice b("b");
  bus.add(0x100, 16, a);
  bus.add(0x200, 16, b);
  a.bytes[3] = std::byte{7};
  b.bytes[4] = std::byte{8};
  auto states = bus.save_all();
  a.bytes.assign(16, std::byte{0});
  b.bytes.assign(16, std::byte{0});
  std::ranges::reverse(states);  // the order in a snapshot means nothing

  ASSERT_TRUE(bus.load_all(states).ok());

  EXPECT_EQ(a.bytes[3], std::byte{7});
  EXPECT_EQ(b.bytes[4], std::byte{8});
}

TEST(Bus, AFailedLoadOfTheLastDevicePutsTheEarlierOnesBack) {
  Bus bus("port");
  FakeDevice a("a");
  FakeDevice b("b");
  bus.add(0x100, 16, a);
  bus.add(0x200, 16, b);
  a.bytes[3] = std::byte{7};
  auto states = bus.save_all();
  states[0].state.bytes[3] = std::byte{9};
  states[1].state.bytes[0] = std::byte{0xee};

  const Status loaded = bus.load_all(states);

  ASSERT_FALSE(loaded.ok());
  EXPECT_NE(loaded.error().message().find("'b'"), std::string::npos) << loaded.error().message();
  EXPECT_EQ(a.bytes[3], std::byte{7});
}

TEST(Bus, LoadAllRefusesMissingUnknownAndDoubleRecords) {
  Bus bus("port");
  FakeDevice a("a");
  FakeDevice b("b");
  bus.add(0x100, 16, a);
  bus.add(0x200, 16, b);
  const auto good = bus.save_all();
  auto missing = good;
  missing.pop_back();
  auto unknown = good;
  unknown.push_back({"c", good[0].state});
  auto twice = good;
  twice.push_back(good[0]);

  for (const auto& states : {missing, unknown, twice}) {
    const Status loaded = bus.load_all(states);
    ASSERT_FALSE(loaded.ok());
    EXPECT_EQ(loaded.error().code(), Errc::kInvalidArgument);
  }
  EXPECT_TRUE(bus.has("a"));
  EXPECT_FALSE(bus.has("c"));
}

// Two threads count in one byte through read-modify-write under the guard: a lost update shows as a wrong sum.
TEST(Bus, TheGuardKeepsHostInputAndGuestAccessApart) {
  constexpr int kRounds = 2000;
  Bus bus("port");
  FakeDevice device("dev");
  bus.add(0x100, 16, device);
  std::thread guest([&] {
    std::array<std::byte, 1> in{std::byte{1}};
    for (int i = 0; i < kRounds; ++i) bus.write(0x100, in);
  });
  for (int i = 0; i < kRounds; ++i) {
    const auto guard = bus.lock();
    ++device.writes;
  }
  guest.join();
  EXPECT_EQ(device.writes, 2 * kRounds);
}

}  // namespace
}  // namespace fvmm::devices
