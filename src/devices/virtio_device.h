// The contract of a virtio device behind a transport: what it is, when it may touch its queues, how it is paused and
// moved. docs/devices.md tells how to write one; tests/unit/devices_virtio_conformance_test.cc holds every one to it.
//
//            activate()                  quiesce()                  resume()
//   Idle ───────────────► Active ⇄ (queues are the device's) ⇄ Quiet (nothing in flight) ⇄ ...
//     ◄─────────────────────┴──────────── reset() ─────────────────┘
//
// Threads. Every method is called by the holder of the bus lock: a vCPU's thread on an exit, or the VM's owner. A
// device that works on its own thread hands its queues to that thread in activate() and resume(), and has them back
// when quiesce() or reset() returns; in between, read_config() and notify() must not touch a queue. VirtioSignals and
// the OutputGate may be called from any thread at any time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/clock.h"
#include "base/result.h"
#include "devices/device.h"
#include "devices/virtio_queue.h"
#include "devices/virtio_signals.h"

namespace fvmm::devices {

inline constexpr std::size_t kVirtioQueuesMax = 16;          // of one device
inline constexpr std::size_t kVirtioConfigBytesMax = 0xf00;  // the configuration space in a 4 KiB window

class VirtioDevice {
 public:
  VirtioDevice() = default;
  virtual ~VirtioDevice() = default;  // ends its threads; nothing is in flight afterwards
  VirtioDevice(const VirtioDevice&) = delete;
  VirtioDevice& operator=(const VirtioDevice&) = delete;
  VirtioDevice(VirtioDevice&&) = delete;
  VirtioDevice& operator=(VirtioDevice&&) = delete;

  // ---- what it is; constant over its life

  [[nodiscard]] virtual std::uint32_t type() const = 0;  // virtio_abi.h, kType...
  /// Device-specific bits only (none of kReservedFeatures); the transport adds its own.
  [[nodiscard]] virtual std::uint64_t features() const { return 0; }
  /// One entry a queue: the largest size, a power of two up to kQueueSizeMax. At most kVirtioQueuesMax.
  [[nodiscard]] virtual std::span<const std::uint16_t> queue_sizes() const = 0;
  /// Of the configuration space, at most kVirtioConfigBytesMax. The rest of the window reads as zeros.
  [[nodiscard]] virtual std::size_t config_bytes() const { return 0; }

  // ---- what the driver does

  /// [offset, offset + size) lies within config_bytes(). Never fails: answers as hardware would. Also before
  /// activate().
  virtual void read_config(std::uint64_t offset, std::span<std::byte> out);
  virtual void write_config(std::uint64_t offset, std::span<const std::byte> in);

  /// What a device works with from DRIVER_OK on. The spans and references are the transport's and outlive the device's
  /// use of them: until reset() or destruction.
  struct Driver {
    std::uint64_t features = 0;   // negotiated
    std::span<Virtqueue> queues;  // one for each of queue_sizes(); some may not be enabled
    VirtioSignals* signals = nullptr;
    memory::GuestMemory* memory = nullptr;  // for what is no buffer of a queue: pages that a balloon gives back
  };
  /// DRIVER_OK. Must not touch guest memory: a load comes here before memory is there. Then notify() or resume()
  /// follows.
  virtual void activate(const Driver& driver) = 0;
  /// The driver has added to an enabled queue, or a spurious call. Not called while quiet.
  virtual void notify(unsigned queue) = 0;
  /// Back to the state after construction; called in any state. When it returns, nothing is in flight and no queue is
  /// touched any more. What the host had for the guest (input that waits) may stay.
  virtual void reset() = 0;

  // ---- what the machine does

  /// Before a pause ends in a save: finishes what is in flight, after which nothing changes by itself, neither in guest
  /// memory nor in save(). vCPUs are parked. On an error (kDeadlineExceeded) it goes on as if never asked. A second
  /// call does nothing. A device begins quiet.
  virtual Status quiesce(const Deadline& deadline) = 0;
  /// The end of a pause. If active, serves what waits in every queue: a notification may have been lost on the way. A
  /// second call does nothing.
  virtual void resume() = 0;

  /// What the device itself remembers; the transport saves registers, features and queue indices. Only while quiet.
  [[nodiscard]] virtual DeviceState save() const = 0;
  /// All or nothing. Only while quiet and not active; activate() follows if the saved one was active.
  virtual Status load(const DeviceState& state) = 0;

  /// A queue's eventfd, when notifications shall wake a thread instead of stopping the vCPU; the transport binds it
  /// from DRIVER_OK until reset. -1: notify() is called. Where the kernel cannot bind it, notify() is called all the
  /// same.
  [[nodiscard]] virtual int doorbell(unsigned queue) const;
};

/// Guest writes that wake a thread instead of ending in the VMM; vmm implements it with KVM_IOEVENTFD. Thread: any.
class Doorbells {
 public:
  Doorbells() = default;
  virtual ~Doorbells() = default;
  Doorbells(const Doorbells&) = delete;
  Doorbells& operator=(const Doorbells&) = delete;
  Doorbells(Doorbells&&) = delete;
  Doorbells& operator=(Doorbells&&) = delete;
  /// A 4-byte write of `value` at this MMIO address adds 1 to the eventfd. kIo, kResourceExhausted.
  virtual Status bind(std::uint64_t address, std::uint32_t value, int event) = 0;
  virtual void unbind(std::uint64_t address, std::uint32_t value, int event) = 0;  // of what was bound
};

}  // namespace fvmm::devices
