// Random rings, descriptors, commands, frames, resets, pauses and moves on virtio-net. It never touches a page without
// a mark, and never stops answering an honest driver. A failure prints its seed; FVMM_FUZZ_SEED replays it,
// FVMM_FUZZ_STEPS changes the length.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "support/virtio_driver.h"
#include "support/virtio_kinds.h"

namespace fvmm::devices {
namespace {

using namespace virtio;

constexpr std::chrono::seconds kWait{30};
constexpr unsigned kQueues = 3;
constexpr std::uint16_t kRoomPages = 17;    // for the largest frame
constexpr std::uint64_t kTable = 6 * kMiB;  // of indirect descriptors
constexpr Mac kOwn{2, 0x11, 0x22, 0x33, 0x44, 0x55};

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

class NetFuzz {
 public:
  explicit NetFuzz(std::uint64_t seed) : random_(seed) { start(); }

  void step() {
    const std::uint64_t what = below(100);
    if (what < 2) {
      start();
    } else if (what < 40) {
      descriptor();
    } else if (what < 75) {
      offer();
    } else if (what < 92) {
      wire_->push(frame());
    } else if (what < 95) {
      device_->write(kInterruptAck, bytes_of(static_cast<std::uint32_t>(below(8))));
    } else if (what < 97) {
      net_->announce();
    } else {
      move();
    }
  }
  /// Whatever has happened: after a reset the device serves.
  void check_end() {
    start();
    testing::VirtioDriver driver(*device_, *memory_);
    driver.start(net_->features());
    for (std::uint16_t i = 0; i < kRoomPages; ++i) {  // one of the largest may wait from before
      driver.describe(0, i, {.address = kTable + 4096ULL * i, .bytes = 4096, .flags = kDescriptorWrite});
      driver.offer(0, i);
    }
    driver.notify(0);
    wire_->push(testing::frame_to(kOwn, 100));
    const Deadline deadline = Deadline::after(kWait);
    while (driver.used_index(0) == 0 && !deadline.passed()) std::this_thread::yield();
    EXPECT_GE(driver.used_index(0), 1U);
    EXPECT_GT(served_, 0U) << "no request was ever answered: this tests nothing";
  }

 private:
  std::uint64_t below(std::uint64_t limit) {
    return std::uniform_int_distribution<std::uint64_t>(0, limit - 1)(random_);
  }
  bool one_in(std::uint64_t n) { return below(n) == 0; }
  template <typename T>
  static std::vector<std::byte> bytes_of(T value) {
    const auto bytes = std::as_bytes(std::span(&value, 1));
    return {bytes.begin(), bytes.end()};
  }
  /// As the guest: into memory and into what memory must be.
  template <typename T>
  void put(std::uint64_t address, T value) {
    const auto ram = memory_->pages_for_load({0, memory_->layout().pages()});
    std::memcpy(ram.data() + address, &value, sizeof value);
    std::memcpy(shadow_.data() + address, &value, sizeof value);
  }
  static std::uint64_t rings(std::uint64_t queue) { return kMiB + 0x10000 * queue; }

  void build() {
    wire_ = std::make_shared<testing::Wire>();
    auto made = testing::net_over_a_wire(wire_);
    net_ = made.get();
    device_ = std::make_unique<VirtioMmio>("virtio0", VirtioMmio::Surroundings{.memory = *memory_, .line = line_},
                                           std::move(made));
  }
  /// A driver that does everything right, with features that make sense or not.
  void start() {
    if (!device_) {
      build();
      device_->resume();
    }
    settle();
    const auto features = static_cast<std::uint32_t>((net_->features() | kFeatureIndirect | kFeatureEventIdx) &
                                                     (one_in(3) ? ~0ULL : random_()));
    for (const auto& [offset, value] : std::vector<std::pair<std::uint64_t, std::uint32_t>>{{kStatus, 0},
                                                                                            {kStatus, 3},
                                                                                            {kDriverFeaturesSel, 0},
                                                                                            {kDriverFeatures, features},
                                                                                            {kDriverFeaturesSel, 1},
                                                                                            {kDriverFeatures, 1},
                                                                                            {kStatus, 11}}) {
      device_->write(offset, bytes_of(value));
    }
    size_ = static_cast<std::uint16_t>(1U << (2 + below(5)));
    for (std::uint32_t queue = 0; queue < kQueues; ++queue) {
      for (std::uint64_t at = 0; at < 0x3000; at += 8) put(rings(queue) + at, std::uint64_t{0});
      available_[queue] = 0;
      const auto base = static_cast<std::uint32_t>(rings(queue));
      for (const auto& [offset, value] :
           std::vector<std::pair<std::uint64_t, std::uint32_t>>{{kQueueSel, queue},
                                                                {kQueueSize, size_},
                                                                {kQueueDescLow, base},
                                                                {kQueueDriverLow, base + 0x1000},
                                                                {kQueueDeviceLow, base + 0x2000},
                                                                {kQueueReady, 1}}) {
        device_->write(offset, bytes_of(value));
      }
    }
    device_->write(kStatus, bytes_of(std::uint32_t{15}));
  }
  void descriptor() {
    const std::uint64_t at = one_in(5) ? kTable + 16 * below(8) : rings(below(kQueues)) + 16 * below(size_);
    const bool nonsense = one_in(12);
    put(at, nonsense ? random_() : 4 * kMiB + below(256) * 512);
    put(at + 8, one_in(24) ? static_cast<std::uint32_t>(random_())
                           : static_cast<std::uint32_t>(1 + below(one_in(3) ? 3000 : 40)));
    auto flags = static_cast<std::uint16_t>(below(4));
    if (one_in(8)) {
      flags = kDescriptorIndirect;
      put(at, kTable);
      put(at + 8, static_cast<std::uint32_t>(16 * (1 + below(8))));
    }
    put(at + 12, flags);
    put(at + 14, static_cast<std::uint16_t>(below(one_in(16) ? 70000 : size_)));
  }
  void offer() {
    const std::uint64_t queue = below(kQueues);
    const auto head = static_cast<std::uint16_t>(below(one_in(64) ? 70000 : size_));
    if (one_in(2)) honest(queue, head % size_);
    put(rings(queue) + 0x1000 + 4 + 2ULL * (available_[queue] % size_), head);
    available_[queue] = static_cast<std::uint16_t>(available_[queue] + (one_in(96) ? below(40) : 1));
    put(rings(queue) + 0x1000 + 2, available_[queue]);
    device_->write(kQueueNotify, bytes_of(static_cast<std::uint32_t>(queue)));
  }
  /// A request as a driver would make it.
  void honest(std::uint64_t queue, std::uint64_t index) {
    const std::uint64_t at = rings(queue) + 16 * index;
    const std::uint64_t buffer = 5 * kMiB + index * 2048;
    put(at, buffer);
    put(at + 8, static_cast<std::uint32_t>(queue == 0 ? 1536 : 26 + below(1500)));
    put(at + 12, static_cast<std::uint16_t>(queue == 0 ? kDescriptorWrite : 0));
    if (queue != 2) return;
    for (std::uint64_t i = 0; i < 32; ++i) put(buffer + i, static_cast<std::uint8_t>(below(i < 2 ? 5 : 3)));
    put(at + 8, static_cast<std::uint32_t>(below(32) + 1));
    put(at + 12, kDescriptorNext);
    const std::uint64_t next = (index + 1) % size_;
    put(at + 14, static_cast<std::uint16_t>(next));
    put(rings(queue) + 16 * next, buffer + 1024);
    put(rings(queue) + 16 * next + 8, std::uint32_t{1});
    put(rings(queue) + 16 * next + 12, kDescriptorWrite);
  }
  testing::Frame frame() {
    testing::Frame frame = testing::frame_to(one_in(2) ? kOwn : Mac{2, 0, 0, 0, 0, static_cast<std::uint8_t>(below(4))},
                                             one_in(8) ? below(kNetDataBytesMax + 1) : 14 + below(1500));
    if (one_in(4)) frame.at(below(2)) = static_cast<std::byte>(below(8));
    if (one_in(32)) frame.resize(below(30));
    return frame;
  }
  /// Everything begun is done, and every page that was written has its mark.
  void settle() {
    ASSERT_TRUE(device_->quiesce(Deadline::after(kWait)).ok());
    compare();
    device_->resume();
  }
  void compare() {
    memory::Bitmap marks(memory_->layout().pages());
    memory_->device_marks().drain_into(marks);
    for (const memory::PageRange& range : marks.ranges(64)) {
      std::ranges::copy(memory_->pages(range), shadow_.begin() + static_cast<std::ptrdiff_t>(range.first * kPageBytes));
    }
    const auto ram = memory_->pages({0, memory_->layout().pages()});
    ASSERT_EQ(std::memcmp(ram.data(), shadow_.data(), ram.size()), 0) << "a page was written without a mark";
    for (std::uint64_t queue = 0; queue < kQueues; ++queue) {
      served_ += memory_->load_u16(rings(queue) + 0x2000 + 2).value() != 0 ? 1 : 0;
    }
  }
  /// Another device takes over; a damaged state changes everything or nothing.
  void move() {
    ASSERT_TRUE(device_->quiesce(Deadline::after(kWait)).ok());
    compare();
    const DeviceState state = device_->save();
    build();
    DeviceState damaged = state;
    damaged.bytes.at(below(damaged.bytes.size())) = static_cast<std::byte>(below(256));
    (void)device_->load(damaged);
    ASSERT_TRUE(device_->load(state).ok());
    ASSERT_EQ(device_->save().bytes, state.bytes);
    device_->resume();
  }

  std::mt19937_64 random_;
  std::unique_ptr<memory::GuestMemory> memory_ = testing::small_memory();
  std::vector<std::byte> shadow_ = std::vector<std::byte>(testing::kDriverMemory);
  testing::FakeIrqLine line_;
  std::shared_ptr<testing::Wire> wire_;
  VirtioNet* net_ = nullptr;
  std::unique_ptr<VirtioMmio> device_;
  std::uint16_t size_ = 16;
  std::array<std::uint16_t, kQueues> available_{};
  std::uint64_t served_ = 0;
};

TEST(VirtioNetFuzz, AHostileDriverGetsAResetAndNothingElse) {
  const std::uint64_t seed = from_environment("FVMM_FUZZ_SEED", std::random_device{}());
  const std::uint64_t steps = from_environment("FVMM_FUZZ_STEPS", 20'000);
  SCOPED_TRACE("FVMM_FUZZ_SEED=" + std::to_string(seed));
  NetFuzz fuzz(seed);
  for (std::uint64_t step = 0; step < steps && !::testing::Test::HasFatalFailure(); ++step) fuzz.step();
  fuzz.check_end();
}

}  // namespace
}  // namespace fvmm::devices
