// virtio-console: what is its own. What every virtio device promises is in devices_virtio_conformance_test.cc.
#include <gtest/gtest.h>

#include <string>

#include "devices/virtio_console.h"
#include "support/virtio_driver.h"

namespace fvmm::devices {
namespace {

using testing::bytes_of;
using testing::kDriverBuffers;
using virtio::kDescriptorNext;
using virtio::kDescriptorWrite;

constexpr unsigned kInput = 0;
constexpr unsigned kOutput = 1;

class Console : public ::testing::Test {
 protected:
  Console() { device.resume(); }
  [[nodiscard]] VirtioConsole& console() { return dynamic_cast<VirtioConsole&>(device.device()); }
  /// A buffer for input in descriptor `index`; the device is not told.
  void offer_room(std::uint16_t index, std::uint32_t bytes) {
    driver.describe(kInput, index,
                    {.address = kDriverBuffers + 8192ULL * index, .bytes = bytes, .flags = kDescriptorWrite});
    driver.offer(kInput, index);
  }
  std::string received(std::uint16_t index) {
    const auto used = driver.take_used(kInput);
    if (!used || used->head != index) return "(nothing)";
    return driver.text(kDriverBuffers + 8192ULL * index, used->bytes);
  }

  testing::FakeIrqLine line;
  testing::FakeSink sink;
  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  VirtioMmio device{"virtio0", {.memory = *memory, .line = line}, std::make_unique<VirtioConsole>(sink)};
  testing::VirtioDriver driver{device, *memory};
};

TEST_F(Console, OutputGoesToTheSinkInOrder) {
  driver.start(0);
  driver.put_text(kDriverBuffers, "Hello, ");
  driver.put_text(kDriverBuffers + 100, "world");
  driver.describe(kOutput, 1, {.address = kDriverBuffers + 100, .bytes = 5});
  driver.send(kOutput, 0, {.address = kDriverBuffers, .bytes = 7, .flags = kDescriptorNext, .next = 1});
  EXPECT_EQ(sink.text, "Hello, world");
  EXPECT_EQ(driver.take_used(kOutput), (testing::VirtioDriver::Used{.head = 0, .bytes = 0}));
}

TEST_F(Console, OneRequestCarriesAtMostItsLimit) {
  driver.start(0);
  driver.send(kOutput, 0, {.address = kDriverBuffers, .bytes = kConsoleRequestBytesMax});
  EXPECT_EQ(sink.text.size(), kConsoleRequestBytesMax);
  EXPECT_EQ(console().cut_bytes(), 0U);
  driver.send(kOutput, 1, {.address = kDriverBuffers, .bytes = kConsoleRequestBytesMax + 1});
  EXPECT_EQ(sink.text.size(), 2 * kConsoleRequestBytesMax);
  EXPECT_EQ(console().cut_bytes(), 1U);
}

TEST_F(Console, InputFillsTheDriversBuffers) {
  driver.start(0);
  offer_room(0, 4);
  offer_room(1, 4);
  driver.notify(kInput);
  EXPECT_EQ(console().push_input(bytes_of("abcdef")), 6U);
  EXPECT_EQ(received(0), "abcd");
  EXPECT_EQ(received(1), "ef");
  EXPECT_TRUE(line.level);
}

TEST_F(Console, InputWaitsForABufferAndForADriver) {
  EXPECT_EQ(console().push_input(bytes_of("early")), 5U);
  driver.start(virtio::kFeatureEventIdx);
  offer_room(0, 64);
  driver.notify(kInput);
  EXPECT_EQ(received(0), "early");
  EXPECT_EQ(console().push_input(bytes_of("next")), 4U);
  EXPECT_EQ(driver.avail_event(kInput), 1U) << "the driver is asked to say when it has room";
  offer_room(1, 64);
  driver.notify(kInput);
  EXPECT_EQ(received(1), "next");
}

TEST_F(Console, InputThatWaitsIsBounded) {
  driver.start(0);
  const std::string much(kConsoleQueueBytesMax + 1, 'x');
  EXPECT_EQ(console().push_input(bytes_of(much)), kConsoleQueueBytesMax);
  EXPECT_EQ(console().push_input(bytes_of("y")), 0U);
  offer_room(0, 1);
  driver.notify(kInput);
  EXPECT_EQ(received(0), "x");
  EXPECT_EQ(console().push_input(bytes_of("yz")), 1U);
}

TEST_F(Console, ARoomThatCannotBeWrittenNeedsAReset) {
  driver.start(0);
  driver.describe(kInput, 0, {.address = kDriverBuffers, .bytes = 4});
  driver.offer(kInput, 0);
  EXPECT_EQ(console().push_input(bytes_of("a")), 1U);
  EXPECT_TRUE(driver.needs_reset());
  EXPECT_EQ(device.signals().faults(GuestFault::kRequest), 1U);
}

TEST_F(Console, WhileQuietInputStaysWithTheHost) {
  driver.start(0);
  ASSERT_TRUE(device.quiesce(Deadline::after(std::chrono::seconds(1))).ok());
  EXPECT_EQ(console().push_input(bytes_of("a")), 0U);
  device.resume();
  EXPECT_EQ(console().push_input(bytes_of("a")), 1U);
}

TEST_F(Console, InputThatWaitsMovesWithTheGuest) {
  driver.start(0);
  EXPECT_EQ(console().push_input(bytes_of("moving")), 6U);
  ASSERT_TRUE(device.quiesce(Deadline::after(std::chrono::seconds(1))).ok());
  VirtioMmio there{"virtio0", {.memory = *memory, .line = line}, std::make_unique<VirtioConsole>(sink)};
  ASSERT_TRUE(there.load(device.save()).ok());
  driver.move_to(there);
  offer_room(0, 64);
  there.resume();
  EXPECT_EQ(received(0), "moving");
}

TEST_F(Console, AStateOfMoreInputThanMayWaitIsRefused) {
  VirtioConsole fresh(sink);
  const auto state_of = [](std::uint32_t bytes) {
    DeviceState state{.version = 1, .bytes = std::vector<std::byte>(4 + bytes)};
    for (unsigned i = 0; i < 4; ++i) state.bytes[i] = static_cast<std::byte>(bytes >> (8 * i));
    return state;
  };
  EXPECT_TRUE(fresh.load(state_of(kConsoleQueueBytesMax)).ok());
  EXPECT_FALSE(fresh.load(state_of(kConsoleQueueBytesMax + 1)).ok());
  EXPECT_EQ(fresh.save().bytes, state_of(kConsoleQueueBytesMax).bytes);
}

TEST_F(Console, AnEmergencyWriteNeedsNoQueue) {
  device.write(virtio::kConfig + 8, bytes_of("!\0\0\0"));
  EXPECT_EQ(sink.text, "!");
}

}  // namespace
}  // namespace fvmm::devices
