// Address ranges of one space (ports or MMIO) and the devices behind them. vCPU threads come here on every exit; the
// bus lock makes each access whole, and host-side input takes the same lock. Owner: the machine; it outlives its vCPUs.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "devices/device.h"

namespace fvmm::devices {

inline constexpr std::size_t kBusRangesMax = 64;
inline constexpr std::size_t kUnclaimedLoggedMax = 64;  // addresses a guest can put into our log, per bus

/// A device's state under the name by which load_all() finds its device.
struct NamedState {
  std::string id;
  DeviceState state;
};

class Bus {
 public:
  using Guard = std::unique_lock<std::mutex>;

  /// @param name  appears in logs and errors: "port", "mmio"
  explicit Bus(std::string name) : name_(std::move(name)) {}

  /// Claims [base, base + length) for a device, which must outlive the bus. The device sees `address - base + offset`,
  /// so that one device can claim several ranges. Aborts on an overlap, an empty or wrapping range, two devices of one
  /// id, or more than kBusRangesMax ranges: a machine's layout is ours to get right. Thread: any.
  void add(std::uint64_t base, std::uint64_t length, Device& device, std::uint64_t offset = 0);

  /// One access of `out.size()` bytes. What no single range claims whole reads as all ones. Thread: any.
  void read(std::uint64_t address, std::span<std::byte> out);
  /// One access of `in.size()` bytes. What no single range claims whole is ignored. Thread: any.
  void write(std::uint64_t address, std::span<const std::byte> in);
  /// A string instruction (rep ins, rep outs): accesses of `width` bytes at one address until the span is used up,
  /// under one lock. The span is a multiple of the width (KVM_EXIT_IO: size and count).
  void read_repeated(std::uint64_t address, std::size_t width, std::span<std::byte> out);
  void write_repeated(std::uint64_t address, std::size_t width, std::span<const std::byte> in);

  /// For input from the host: hold it while calling a device directly. Never call this bus with it held.
  [[nodiscard]] Guard lock() { return Guard(mutex_); }
  /// The same, or nothing when somebody has it now: the guard then owns no lock.
  [[nodiscard]] Guard try_lock() { return Guard(mutex_, std::try_to_lock); }

  [[nodiscard]] bool has(std::string_view id) const;
  /// All devices, in the order they were added. Call only while the vCPUs are parked.
  [[nodiscard]] std::vector<NamedState> save_all() const;
  /// All or nothing over all devices: on error every device has the state it had before. kInvalidArgument when a device
  /// has no record, a record no device, or an id comes twice; a device's own error otherwise. Vcpus are parked.
  Status load_all(std::span<const NamedState> states);

  [[nodiscard]] std::uint64_t unclaimed_reads() const { return unclaimed_reads_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t unclaimed_writes() const { return unclaimed_writes_.load(std::memory_order_relaxed); }

 private:
  struct Range {
    std::uint64_t base;
    std::uint64_t last;  // inclusive, so that a range may end at 2^64 - 1
    Device* device;
    std::uint64_t offset;
  };

  const Range* find(std::uint64_t address, std::size_t width) const;  // mutex_ held
  Device* find_device(std::string_view id) const;                     // mutex_ held
  void read_locked(std::uint64_t address, std::span<std::byte> out);
  void write_locked(std::uint64_t address, std::span<const std::byte> in);
  void log_unclaimed(const char* verb, std::uint64_t address, std::size_t width);
  Status check_records(std::span<const NamedState> states) const;

  const std::string name_;
  mutable std::mutex mutex_;      // the bus lock: guards the tables below and every method of every device on this bus
  std::vector<Range> ranges_;     // mutex_; sorted by base
  std::vector<Device*> devices_;  // mutex_; in order of add()
  std::vector<std::uint64_t> logged_;  // mutex_; sorted; at most kUnclaimedLoggedMax
  std::atomic<std::uint64_t> unclaimed_reads_{0};
  std::atomic<std::uint64_t> unclaimed_writes_{0};
};

}  // namespace fvmm::devices
