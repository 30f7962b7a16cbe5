// What a virtio device tells its driver without being asked: used buffers, a changed configuration, that it needs a
// reset. Owner: the transport; a device's I/O thread and the vCPUs meet here, so it has a lock of its own, the
// innermost.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string_view>

#include "devices/device.h"

namespace fvmm::devices {

/// What a driver can do wrong. Each is counted; all but the last two make the device need a reset.
enum class GuestFault : std::uint8_t {
  kQueueSetup,       // QueueReady with a size that is no power of two, rings misaligned or outside RAM
  kAvailableIndex,   // more entries made available than the queue has
  kDescriptorIndex,  // a head or a next outside its table
  kChainLength,      // a loop, or more buffers than a chain may have
  kIndirectTable,    // nested, not negotiated, with a next, empty, of odd size, too long, outside RAM
  kZeroLength,       // a buffer of no bytes
  kBufferAddress,    // a buffer that is not wholly RAM
  kBufferOrder,      // a device-readable buffer behind a device-writable one
  kBufferBytes,      // more than 4 GiB in one chain
  kRequest,          // the device cannot make sense of what the chain holds
  kRegister,         // a register written out of turn, or with a width it does not have: ignored
  kNotify,           // a notification of a queue that is not there or not ready: ignored
};
inline constexpr std::size_t kGuestFaults = 12;
std::string_view to_string(GuestFault fault);

class VirtioSignals {
 public:
  /// @param line  the device's interrupt, driven to "some bit of InterruptStatus is set"; must outlive this
  explicit VirtioSignals(IrqLine& line) : line_(line) {}

  // For devices and queues. Thread: any.
  void used();                   // InterruptStatus bit 0; Virtqueue::interrupt() decides whether the driver wants it
  void config_changed();         // a new ConfigGeneration and InterruptStatus bit 1; change the configuration first
  void fault(GuestFault fault);  // counts, DEVICE_NEEDS_RESET and InterruptStatus bit 1
  void count(GuestFault fault);  // only counts
  [[nodiscard]] bool needs_reset() const { return needs_reset_.load(std::memory_order_acquire); }
  /// Since the device was made, over resets; no device state.
  [[nodiscard]] std::uint64_t faults(GuestFault fault) const {
    return faults_.at(static_cast<std::size_t>(fault)).load(std::memory_order_relaxed);
  }

  // For the transport.
  struct State {
    std::uint32_t interrupt_status = 0;
    std::uint32_t config_generation = 0;
    bool needs_reset = false;
  };
  void acknowledge(std::uint32_t bits);
  void reset();  // all but the generation, which only ever grows
  [[nodiscard]] State state() const;
  void load(const State& state);  // drives the line

 private:
  void raise(std::uint32_t bits);  // mutex_ held

  IrqLine& line_;
  mutable std::mutex mutex_;
  State state_;                           // mutex_
  std::atomic<bool> needs_reset_{false};  // written under mutex_
  std::array<std::atomic<std::uint64_t>, kGuestFaults> faults_{};
};

}  // namespace fvmm::devices
