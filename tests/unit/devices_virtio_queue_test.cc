// Virtqueue and Chain as a device uses them directly: kernel I/O, giving requests back, asking not to be told.
#include <gtest/gtest.h>

#include <cstring>
#include <tuple>

#include "devices/virtio_queue.h"
#include "support/threaded_device.h"
#include "support/virtio_driver.h"

namespace fvmm::devices {
namespace {

using namespace virtio;
using testing::kDriverBuffers;

/// A device that does nothing: tests work its queue.
class Idle final : public VirtioDevice {
 public:
  [[nodiscard]] std::uint32_t type() const override { return 41; }
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override {
    static constexpr std::array<std::uint16_t, 1> kSizes{8};
    return kSizes;
  }
  void activate(const Driver& with) override { driver = with; }
  void notify(unsigned) override { ++notified; }
  void reset() override { driver = {}; }
  Status quiesce(const Deadline&) override { return {}; }
  void resume() override {}
  [[nodiscard]] DeviceState save() const override { return {}; }
  Status load(const DeviceState&) override { return {}; }
  Driver driver;
  int notified = 0;
};

class Queue : public ::testing::Test {
 protected:
  Queue() { device.resume(); }
  Virtqueue& queue() { return dynamic_cast<Idle&>(device.device()).driver.queues[0]; }
  void offer(std::uint16_t count) {
    for (std::uint16_t i = 0; i < count; ++i) {
      driver.describe(0, i, {.address = kDriverBuffers + 64ULL * i, .bytes = 64, .flags = kDescriptorWrite});
      driver.offer(0, i);
    }
  }
  memory::Bitmap take_marks() {
    memory::Bitmap marks(memory->layout().pages());
    memory->device_marks().drain_into(marks);
    return marks;
  }

  testing::FakeIrqLine line;
  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  VirtioMmio device{"virtio0", {.memory = *memory, .line = line}, std::make_unique<Idle>()};
  testing::VirtioDriver driver{device, *memory};
  Chain chain;
};

TEST_F(Queue, AnswersThatAreFilledAreSeenTogether) {
  driver.start(0);
  EXPECT_FALSE(queue().waiting());
  offer(3);
  ASSERT_TRUE(queue().waiting());
  std::array<Chain, 3> chains;
  for (Chain& one : chains) ASSERT_TRUE(queue().pop(one));
  EXPECT_FALSE(queue().waiting());
  for (std::uint32_t i = 0; i < chains.size(); ++i) queue().fill(chains.at(i), i + 1);
  EXPECT_EQ(driver.used_index(0), 0U);
  queue().publish();
  for (std::uint32_t i = 0; i < chains.size(); ++i) {
    EXPECT_EQ(driver.take_used(0), (testing::VirtioDriver::Used{.head = i, .bytes = i + 1}));
  }
}

TEST_F(Queue, KernelIoGetsThePiecesAndMarksThemAtCompletion) {
  driver.start(0);
  driver.describe(0, 0, {.address = kDriverBuffers, .bytes = 16, .flags = kDescriptorNext, .next = 1});
  driver.describe(
      0, 1,
      {.address = kDriverBuffers + kPageBytes, .bytes = 100, .flags = kDescriptorWrite | kDescriptorNext, .next = 2});
  driver.describe(0, 2, {.address = kDriverBuffers + 3 * kPageBytes, .bytes = 50, .flags = kDescriptorWrite});
  driver.put_text(kDriverBuffers, "0123456789abcdef");
  driver.offer(0, 0);
  ASSERT_EQ(queue().arm(), 1U);
  ASSERT_TRUE(queue().pop(chain));
  EXPECT_EQ(chain.readable_bytes(), 16U);
  EXPECT_EQ(chain.writable_bytes(), 150U);
  std::vector<iovec> out;
  std::vector<iovec> in;
  chain.append_readable(4, 100, out);
  chain.append_writable(90, 30, in);
  ASSERT_EQ(out.size(), 1U);
  EXPECT_EQ(out[0].iov_len, 12U);
  EXPECT_EQ(std::memcmp(out[0].iov_base, "456789abcdef", 12), 0);
  ASSERT_EQ(in.size(), 2U);
  EXPECT_EQ(in[0].iov_base, memory->host_base() + kDriverBuffers + kPageBytes + 90);
  EXPECT_EQ(in[0].iov_len, 10U);
  EXPECT_EQ(in[1].iov_base, memory->host_base() + kDriverBuffers + 3 * kPageBytes);
  EXPECT_EQ(in[1].iov_len, 20U);
  (void)take_marks();
  chain.mark_written(90, 30);
  const auto marks = take_marks();
  EXPECT_EQ(marks.count(), 2U);
  EXPECT_TRUE(marks.test(kDriverBuffers / kPageBytes + 1));
  EXPECT_TRUE(marks.test(kDriverBuffers / kPageBytes + 3));
}

TEST_F(Queue, CopiesEndWhereTheBuffersEnd) {
  driver.start(0);
  offer(1);
  ASSERT_TRUE(queue().pop(chain));
  const std::vector<std::byte> much(100, std::byte{7});
  EXPECT_EQ(chain.write(0, much), 64U);
  EXPECT_EQ(chain.write(60, much), 4U);
  EXPECT_EQ(chain.write(64, much), 0U);
  std::vector<std::byte> none(4);
  EXPECT_EQ(chain.read(0, none), 0U) << "nothing is readable";
  EXPECT_EQ(driver.get<std::uint8_t>(kDriverBuffers + 64), 0U);
}

TEST_F(Queue, RequestsThatAreGivenBackComeAgain) {
  driver.start(0);
  offer(3);
  ASSERT_TRUE(queue().pop(chain));
  ASSERT_TRUE(queue().pop(chain));
  ASSERT_TRUE(queue().pop(chain));
  EXPECT_EQ(queue().in_flight(), 3U);
  queue().unpop(2);
  EXPECT_EQ(queue().in_flight(), 1U);
  ASSERT_TRUE(queue().pop(chain));
  EXPECT_EQ(chain.head(), 1U);
}

TEST_F(Queue, AnswersMayComeInAnyOrder) {
  driver.start(0);
  offer(2);
  Chain second;
  ASSERT_TRUE(queue().pop(chain));
  ASSERT_TRUE(queue().pop(second));
  queue().push(second, 1);
  queue().push(chain, 2);
  EXPECT_EQ(driver.take_used(0), (testing::VirtioDriver::Used{.head = 1, .bytes = 1}));
  EXPECT_EQ(driver.take_used(0), (testing::VirtioDriver::Used{.head = 0, .bytes = 2}));
  EXPECT_FALSE(queue().pop(chain));
}

TEST_F(Queue, InFlightRequestsMoveWithTheIndices) {
  driver.start(0);
  offer(2);
  ASSERT_TRUE(queue().pop(chain));
  ASSERT_TRUE(device.quiesce(Deadline::after(std::chrono::seconds(1))).ok());
  VirtioMmio there{"virtio0", {.memory = *memory, .line = line}, std::make_unique<Idle>()};
  ASSERT_TRUE(there.load(device.save()).ok());
  Virtqueue& moved = dynamic_cast<Idle&>(there.device()).driver.queues[0];
  EXPECT_EQ(moved.in_flight(), 1U);
  ASSERT_TRUE(moved.pop(chain));
  EXPECT_EQ(chain.head(), 1U);
}

TEST_F(Queue, ADisarmedQueueAsksForSilenceUntilItIsArmed) {
  driver.start(0);
  const std::uint64_t flags = driver.rings(0).device;
  EXPECT_EQ(queue().arm(), 0U);
  queue().disarm();
  EXPECT_EQ(driver.get<std::uint16_t>(flags), kUsedNoNotify);
  queue().arm();
  EXPECT_EQ(driver.get<std::uint16_t>(flags), 0U);
}

TEST_F(Queue, NothingNewIsNoInterrupt) {
  driver.start(0);
  offer(1);
  queue().interrupt();
  EXPECT_FALSE(line.level);
  ASSERT_TRUE(queue().pop(chain));
  queue().push(chain, 0);
  queue().interrupt();
  EXPECT_TRUE(line.level);
  driver.write(kInterruptAck, 1);
  queue().interrupt();
  EXPECT_FALSE(line.level);
}

TEST_F(Queue, AConfigurationChangeIsANewGeneration) {
  driver.start(0);
  const std::uint32_t before = driver.read(kConfigGeneration);
  dynamic_cast<Idle&>(device.device()).driver.signals->config_changed();
  EXPECT_EQ(driver.read(kConfigGeneration), before + 1);
  EXPECT_EQ(driver.read(kInterruptStatus), kInterruptConfig);
  driver.write(kStatus, 0);
  EXPECT_EQ(driver.read(kConfigGeneration), before + 1) << "a reset takes no generation back";
}

/// What vmm makes of KVM_IOEVENTFD.
struct FakeDoorbells : Doorbells {
  Status bind(std::uint64_t address, std::uint32_t value, int event) override {
    if (refuse) return Error(Errc::kResourceExhausted, "no more");
    bound.push_back({address, value, event});
    return {};
  }
  void unbind(std::uint64_t address, std::uint32_t value, int event) override {
    EXPECT_EQ(std::erase(bound, std::tuple(address, value, event)), 1U);
  }
  std::vector<std::tuple<std::uint64_t, std::uint32_t, int>> bound;
  bool refuse = false;
};

TEST(VirtioDoorbells, AreBoundWhileTheDriverIsThere) {
  const auto memory = testing::small_memory();
  testing::FakeIrqLine line;
  FakeDoorbells doorbells;
  {
    VirtioMmio device{"virtio0",
                      {.memory = *memory, .line = line, .doorbells = &doorbells, .address = 0xd0000000},
                      std::make_unique<testing::ThreadedDevice>()};
    const int event = device.device().doorbell(0);
    device.resume();
    testing::VirtioDriver driver(device, *memory);
    driver.start(0);
    EXPECT_EQ(doorbells.bound, (std::vector{std::tuple(0xd0000050UL, 0U, event)}));
    driver.write(kStatus, 0);
    EXPECT_TRUE(doorbells.bound.empty());
    doorbells.refuse = true;
    driver.start(0);
    driver.send(0, 0, {.address = kDriverBuffers, .bytes = 4, .flags = kDescriptorWrite});
    EXPECT_EQ(dynamic_cast<testing::ThreadedDevice&>(device.device()).notified, 1) << "it is told the slow way";
    doorbells.refuse = false;
    driver.start(0);
    EXPECT_EQ(doorbells.bound.size(), 1U);
  }
  EXPECT_TRUE(doorbells.bound.empty()) << "a device that goes takes its doorbells along";
}

}  // namespace
}  // namespace fvmm::devices
