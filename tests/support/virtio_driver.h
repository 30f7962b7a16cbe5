// A virtio-mmio driver as a guest would have one: writes registers through the transport and rings into guest memory.
// It keeps no rule that a test wants broken: every descriptor and index can be written as it pleases.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "devices/virtio_abi.h"
#include "devices/virtio_mmio.h"
#include "memory/guest_memory.h"
#include "support/fake_devices.h"

namespace fvmm::testing {

inline constexpr std::uint64_t kDriverRings = kMiB;        // 64 KiB for each queue's rings
inline constexpr std::uint64_t kDriverBuffers = 4 * kMiB;  // where tests put data
inline constexpr std::uint64_t kDriverMemory = 16 * kMiB;

inline std::unique_ptr<memory::GuestMemory> small_memory() {
  auto memory = memory::GuestMemory::reserve(kDriverMemory).value();
  EXPECT_TRUE(memory->map_zero().ok());
  return memory;
}

struct Descriptor {
  std::uint64_t address = 0;
  std::uint32_t bytes = 0;
  std::uint16_t flags = 0;
  std::uint16_t next = 0;
};

class VirtioDriver {
 public:
  struct Used {
    std::uint32_t head;
    std::uint32_t bytes;
    bool operator==(const Used&) const = default;
  };

  VirtioDriver(devices::VirtioMmio& device, memory::GuestMemory& memory) : device_(&device), memory_(memory) {}
  /// The guest has moved: it goes on with another transport and the same memory.
  void move_to(devices::VirtioMmio& device) { device_ = &device; }

  [[nodiscard]] std::uint32_t read(std::uint64_t offset) const {
    std::array<std::byte, 4> bytes{};
    device_->read(offset, bytes);
    std::uint32_t value = 0;
    for (unsigned i = 0; i < 4; ++i) value |= std::to_integer<std::uint32_t>(bytes.at(i)) << (8 * i);
    return value;
  }
  void write(std::uint64_t offset, std::uint32_t value) {
    std::array<std::byte, 4> bytes{};
    for (unsigned i = 0; i < 4; ++i) bytes.at(i) = static_cast<std::byte>(value >> (8 * i));
    device_->write(offset, bytes);
  }
  [[nodiscard]] std::uint32_t status() const { return read(devices::virtio::kStatus); }
  [[nodiscard]] bool needs_reset() const { return (status() & devices::virtio::kStatusNeedsReset) != 0; }
  void add_status(std::uint32_t bit) { write(devices::virtio::kStatus, status() | bit); }

  [[nodiscard]] std::uint64_t offered() {
    write(devices::virtio::kDeviceFeaturesSel, 1);
    const std::uint64_t high = read(devices::virtio::kDeviceFeatures);
    write(devices::virtio::kDeviceFeaturesSel, 0);
    return high << 32 | read(devices::virtio::kDeviceFeatures);
  }
  /// Reset, up to FEATURES_OK; whether the device has taken the features.
  bool negotiate(std::uint64_t features) {
    write(devices::virtio::kStatus, 0);
    add_status(devices::virtio::kStatusAcknowledge);
    add_status(devices::virtio::kStatusDriver);
    write(devices::virtio::kDriverFeaturesSel, 0);
    write(devices::virtio::kDriverFeatures, static_cast<std::uint32_t>(features));
    write(devices::virtio::kDriverFeaturesSel, 1);
    write(devices::virtio::kDriverFeatures, static_cast<std::uint32_t>(features >> 32));
    add_status(devices::virtio::kStatusFeaturesOk);
    return (status() & devices::virtio::kStatusFeaturesOk) != 0;
  }
  static devices::Virtqueue::Rings rings_of(unsigned queue, std::uint16_t size) {
    const std::uint64_t base = kDriverRings + 0x10000ULL * queue;
    return {.size = size, .descriptors = base, .driver = base + 0x5000, .device = base + 0x8000};
  }
  /// Writes a queue's registers, QueueReady last; whether it reads back as ready.
  bool set_up(unsigned queue, const devices::Virtqueue::Rings& rings) {
    using namespace devices::virtio;
    write(kQueueSel, queue);
    write(kQueueSize, rings.size);
    write(kQueueDescLow, static_cast<std::uint32_t>(rings.descriptors));
    write(kQueueDescHigh, static_cast<std::uint32_t>(rings.descriptors >> 32));
    write(kQueueDriverLow, static_cast<std::uint32_t>(rings.driver));
    write(kQueueDriverHigh, static_cast<std::uint32_t>(rings.driver >> 32));
    write(kQueueDeviceLow, static_cast<std::uint32_t>(rings.device));
    write(kQueueDeviceHigh, static_cast<std::uint32_t>(rings.device >> 32));
    write(kQueueReady, 1);
    if (queues_.size() <= queue) queues_.resize(queue + 1);
    queues_[queue] = {.rings = rings};
    const std::vector<std::byte> zeros(0x10000);
    EXPECT_TRUE(memory_.write(kDriverRings + 0x10000ULL * queue, zeros).ok());
    return read(kQueueReady) == 1;
  }
  /// A driver at work: `features` besides VERSION_1, every queue of the device at its largest size, DRIVER_OK.
  void start(std::uint64_t features) {
    ASSERT_TRUE(negotiate(features | devices::virtio::kFeatureVersion1));
    for (unsigned queue = 0;; ++queue) {
      write(devices::virtio::kQueueSel, queue);
      const std::uint32_t size = read(devices::virtio::kQueueSizeMaxRegister);
      if (size == 0) break;
      ASSERT_TRUE(set_up(queue, rings_of(queue, static_cast<std::uint16_t>(size)))) << queue;
    }
    add_status(devices::virtio::kStatusDriverOk);
  }

  void describe(unsigned queue, std::uint32_t index, const Descriptor& descriptor) {
    put_descriptor(queues_.at(queue).rings.descriptors + 16ULL * index, descriptor);
  }
  void put_descriptor(std::uint64_t address, const Descriptor& descriptor) {
    put(address, descriptor.address);
    put(address + 8, descriptor.bytes);
    put(address + 12, descriptor.flags);
    put(address + 14, descriptor.next);
  }
  /// Makes a chain available; the device is not told.
  void offer(unsigned queue, std::uint16_t head) {
    Queue& q = queues_.at(queue);
    put(q.rings.driver + 4 + 2ULL * (q.available % q.rings.size), head);
    set_available(queue, static_cast<std::uint16_t>(q.available + 1));
  }
  void set_available(unsigned queue, std::uint16_t index) {
    Queue& q = queues_.at(queue);
    q.available = index;
    EXPECT_TRUE(memory_.store_u16(q.rings.driver + 2, index));  // with release: what it names is there
  }
  void notify(unsigned queue) { write(devices::virtio::kQueueNotify, queue); }
  /// One buffer as a whole chain, in descriptor `index`; offered and notified.
  void send(unsigned queue, std::uint16_t index, const Descriptor& descriptor) {
    describe(queue, index, descriptor);
    offer(queue, index);
    notify(queue);
  }
  /// The next answer, if there is one.
  std::optional<Used> take_used(unsigned queue) {
    Queue& q = queues_.at(queue);
    if (q.used == used_index(queue)) return std::nullopt;
    const std::uint64_t at = q.rings.device + 4 + 8ULL * (q.used++ % q.rings.size);
    return Used{.head = get<std::uint32_t>(at), .bytes = get<std::uint32_t>(at + 4)};
  }
  [[nodiscard]] std::uint16_t used_index(unsigned queue) const {
    return memory_.load_u16(queues_.at(queue).rings.device + 2)
        .value();  // with acquire, as a driver's barrier gives it
  }
  /// "Interrupt me when the index passes this", and what the device asks of us.
  void set_used_event(unsigned queue, std::uint16_t index) {
    const auto& rings = queues_.at(queue).rings;
    put(rings.driver + 4 + 2ULL * rings.size, index);
  }
  [[nodiscard]] std::uint16_t avail_event(unsigned queue) const {
    const auto& rings = queues_.at(queue).rings;
    return memory_.load_u16(rings.device + 4 + 8ULL * rings.size).value();
  }
  void set_no_interrupt(unsigned queue, bool none) {
    put(queues_.at(queue).rings.driver, static_cast<std::uint16_t>(none ? 1 : 0));
  }
  [[nodiscard]] const devices::Virtqueue::Rings& rings(unsigned queue) const { return queues_.at(queue).rings; }
  [[nodiscard]] std::size_t queues() const { return queues_.size(); }

  template <typename T>
  void put(std::uint64_t address, T value) {
    std::array<std::byte, sizeof(T)> bytes{};
    for (std::size_t i = 0; i < sizeof(T); ++i) bytes[i] = static_cast<std::byte>((value >> (8 * i)) & 0xff);
    EXPECT_TRUE(memory_.write(address, bytes).ok());
  }
  template <typename T>
  [[nodiscard]] T get(std::uint64_t address) const {
    std::array<std::byte, sizeof(T)> bytes{};
    EXPECT_TRUE(memory_.read(address, bytes).ok());
    T value = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) {
      value =
          static_cast<T>(value | static_cast<T>(static_cast<T>(std::to_integer<std::uint8_t>(bytes[i])) << (8 * i)));
    }
    return value;
  }
  [[nodiscard]] std::vector<std::byte> bytes(std::uint64_t address, std::size_t count) const {
    std::vector<std::byte> out(count);
    EXPECT_TRUE(memory_.read(address, out).ok());
    return out;
  }
  void put_text(std::uint64_t address, std::string_view text) {
    EXPECT_TRUE(memory_.write(address, bytes_of(text)).ok());
  }
  [[nodiscard]] std::string text(std::uint64_t address, std::size_t count) const {
    const auto raw = bytes(address, count);
    return {reinterpret_cast<const char*>(raw.data()), raw.size()};
  }

 private:
  struct Queue {
    devices::Virtqueue::Rings rings;
    std::uint16_t available = 0;
    std::uint16_t used = 0;
  };
  devices::VirtioMmio* device_;
  memory::GuestMemory& memory_;
  std::vector<Queue> queues_;
};

}  // namespace fvmm::testing
