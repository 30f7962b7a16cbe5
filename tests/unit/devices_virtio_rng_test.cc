// virtio-rng: what is its own. What every virtio device promises is in devices_virtio_conformance_test.cc.
#include <gtest/gtest.h>

#include <algorithm>

#include "base/id.h"
#include "devices/virtio_rng.h"
#include "support/virtio_driver.h"

namespace fvmm::devices {
namespace {

using testing::Descriptor;
using testing::kDriverBuffers;
using virtio::kDescriptorNext;
using virtio::kDescriptorWrite;

/// A generator that counts: its bytes are 1, 2, 3, ...
struct Counter {
  void operator()(std::span<std::byte> out) {
    for (std::byte& byte : out) byte = static_cast<std::byte>(++*last);
  }
  std::shared_ptr<unsigned> last = std::make_shared<unsigned>(0);
};

class Rng : public ::testing::Test {
 protected:
  Rng() { device.resume(); }
  testing::FakeIrqLine line;
  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  VirtioMmio device{"virtio0", {.memory = *memory, .line = line}, std::make_unique<VirtioRng>(Counter{})};
  testing::VirtioDriver driver{device, *memory};
};

TEST_F(Rng, FillsABufferAndInterrupts) {
  driver.start(0);
  driver.send(0, 5, {.address = kDriverBuffers, .bytes = 8, .flags = kDescriptorWrite});
  EXPECT_EQ(driver.take_used(0), (testing::VirtioDriver::Used{.head = 5, .bytes = 8}));
  EXPECT_EQ(driver.get<std::uint64_t>(kDriverBuffers), 0x0807060504030201ULL);
  EXPECT_EQ(driver.get<std::uint8_t>(kDriverBuffers + 8), 0) << "not a byte further";
  EXPECT_TRUE(line.level);
  EXPECT_EQ(driver.read(virtio::kInterruptStatus), virtio::kInterruptUsed);
  driver.write(virtio::kInterruptAck, virtio::kInterruptUsed);
  EXPECT_FALSE(line.level);
}

TEST_F(Rng, OneRequestGetsAtMostItsLimit) {
  driver.start(0);
  driver.send(0, 0, {.address = kDriverBuffers, .bytes = kRngRequestBytesMax, .flags = kDescriptorWrite});
  EXPECT_EQ(driver.take_used(0)->bytes, kRngRequestBytesMax);
  driver.send(0, 0, {.address = kDriverBuffers, .bytes = kRngRequestBytesMax + 1, .flags = kDescriptorWrite});
  EXPECT_EQ(driver.take_used(0)->bytes, kRngRequestBytesMax);
}

TEST_F(Rng, SeveralBuffersOfOneRequestAreFilledInOrder) {
  driver.start(0);
  driver.describe(0, 1, {.address = kDriverBuffers + 64, .bytes = 2, .flags = kDescriptorWrite});
  driver.send(0, 0, {.address = kDriverBuffers, .bytes = 3, .flags = kDescriptorWrite | kDescriptorNext, .next = 1});
  EXPECT_EQ(driver.take_used(0)->bytes, 5U);
  EXPECT_EQ(driver.bytes(kDriverBuffers, 4), (std::vector<std::byte>{std::byte{1}, std::byte{2}, std::byte{3}, {}}));
  EXPECT_EQ(driver.bytes(kDriverBuffers + 64, 3), (std::vector<std::byte>{std::byte{4}, std::byte{5}, {}}));
}

TEST_F(Rng, ARequestWithoutRoomNeedsAReset) {
  driver.start(0);
  driver.send(0, 0, {.address = kDriverBuffers, .bytes = 8});
  EXPECT_TRUE(driver.needs_reset());
  EXPECT_EQ(device.signals().faults(GuestFault::kRequest), 1U);
  EXPECT_EQ(driver.take_used(0), std::nullopt);
}

TEST_F(Rng, EveryPageItFillsIsMarked) {
  driver.start(0);
  memory::Bitmap before(memory->layout().pages());
  memory->device_marks().drain_into(before);
  driver.send(0, 0, {.address = kDriverBuffers + 4000, .bytes = 200, .flags = kDescriptorWrite});
  memory::Bitmap marks(memory->layout().pages());
  memory->device_marks().drain_into(marks);
  EXPECT_TRUE(marks.test(kDriverBuffers / kPageBytes));
  EXPECT_TRUE(marks.test(kDriverBuffers / kPageBytes + 1));
  EXPECT_TRUE(marks.test(driver.rings(0).device / kPageBytes));
  EXPECT_FALSE(marks.test(kDriverBuffers / kPageBytes + 2));
}

// Version 1, byte for byte: a change of this needs a new version that still reads this one.
TEST_F(Rng, ItsStateIsPinned) {
  driver.start(virtio::kFeatureEventIdx);
  driver.send(0, 5, {.address = kDriverBuffers, .bytes = 8, .flags = kDescriptorWrite});
  ASSERT_TRUE(device.quiesce(Deadline::after(std::chrono::seconds(1))).ok());
  const DeviceState state = device.save();
  EXPECT_EQ(state.version, 1U);
  EXPECT_EQ(to_hex(state.bytes),
            "04000000"  // type
            "0f000000"  // status
            "00000000"
            "01000000"          // DeviceFeaturesSel, DriverFeaturesSel
            "0000002001000000"  // EVENT_IDX, VERSION_1
            "01000000"          // QueueSel
            "01000000"
            "00000000"
            "00"  // InterruptStatus, ConfigGeneration, needs reset
            "01"  // queues
            "01"
            "4000"              // ready, 64 entries
            "0000100000000000"  // descriptors
            "0050100000000000"  // driver
            "0080100000000000"  // device
            "0100"
            "0100"
            "0100"  // next available, next used, signalled
            "01000000"
            "00000000");  // virtio-rng, version 1, no bytes
}

TEST(HostEntropy, TwoFillsDiffer) {
  std::array<std::byte, 32> one{};
  std::array<std::byte, 32> two{};
  host_entropy(one);
  host_entropy(two);
  EXPECT_NE(one, two);
}

}  // namespace
}  // namespace fvmm::devices
