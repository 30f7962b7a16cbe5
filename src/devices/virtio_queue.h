// A split virtqueue (virtio 1.2, section 2.7) as a device sees it. Every access goes through GuestMemory, everything
// read is copied once and then checked, and a driver that breaks the rules gets DEVICE_NEEDS_RESET and a count, never
// more.
//
// Owner: the transport. Thread: whoever holds the device's queues at the moment (docs/devices.md): the bus lock's
// holder, or the device's own thread between activate()/resume() and quiesce()/reset().
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "devices/virtio_signals.h"
#include "memory/guest_memory.h"

namespace fvmm::devices {

inline constexpr std::uint16_t kQueueSizeMax = 1024;   // entries; a device's maximum is a power of two up to this
inline constexpr std::size_t kChainBuffersMax = 1024;  // of one chain, its indirect table included
inline constexpr std::uint64_t kChainBytesMax = 0xffff'ffff;

/// A part of guest RAM; checked when the chain was taken.
struct GuestBuffer {
  std::uint64_t address;
  std::uint32_t bytes;
};

/// One request: device-readable buffers, then device-writable ones. A value that a device keeps until it has answered;
/// filled again and again without allocation.
class Chain {
 public:
  [[nodiscard]] std::uint16_t head() const { return head_; }
  [[nodiscard]] std::span<const GuestBuffer> readable() const { return std::span(buffers_).first(readable_); }
  [[nodiscard]] std::span<const GuestBuffer> writable() const { return std::span(buffers_).subspan(readable_); }
  [[nodiscard]] std::uint64_t readable_bytes() const { return readable_bytes_; }
  [[nodiscard]] std::uint64_t writable_bytes() const { return writable_bytes_; }

  /// Copies from the readable part at `offset` bytes; how much there was, at most out.size().
  std::size_t read(std::uint64_t offset, std::span<std::byte> out) const;
  /// Copies into the writable part at `offset` bytes, and marks; how much there was room for.
  std::size_t write(std::uint64_t offset, std::span<const std::byte> in) const;

  /// Appends the places of [offset, offset + bytes) of a part, for kernel I/O. Nothing is marked: see mark_written().
  void append_readable(std::uint64_t offset, std::uint64_t bytes, std::vector<iovec>& out) const;
  void append_writable(std::uint64_t offset, std::uint64_t bytes, std::vector<iovec>& out) const;
  /// The kernel has filled [offset, offset + bytes) of the writable part. At completion, before Virtqueue::push().
  void mark_written(std::uint64_t offset, std::uint64_t bytes) const;

 private:
  friend class Virtqueue;
  void start(memory::GuestMemory& memory, std::uint16_t head);

  memory::GuestMemory* memory_ = nullptr;
  std::uint16_t head_ = 0;
  std::size_t readable_ = 0;  // how many of the buffers
  std::uint64_t readable_bytes_ = 0;
  std::uint64_t writable_bytes_ = 0;
  std::vector<GuestBuffer> buffers_;
};

class Virtqueue {
 public:
  /// Where the driver has put the rings. Guest-physical addresses.
  struct Rings {
    std::uint16_t size = 0;
    std::uint64_t descriptors = 0;
    std::uint64_t driver = 0;  // "available"
    std::uint64_t device = 0;  // "used"
    bool operator==(const Rings&) const = default;
  };
  /// What must survive a move; free-running, modulo 2^16.
  struct Indices {
    std::uint16_t next_available = 0;  // to be taken
    std::uint16_t next_used = 0;       // to be given back
    std::uint16_t signalled_used = 0;  // next_used when the driver was last considered for an interrupt
    bool operator==(const Indices&) const = default;
  };

  Virtqueue(memory::GuestMemory& memory, VirtioSignals& signals) : memory_(memory), signals_(signals) {}

  // ---- for devices

  /// The driver has set it up. A queue that is not enabled, or whose device needs a reset, is empty for ever.
  [[nodiscard]] bool enabled() const { return enabled_; }
  [[nodiscard]] std::uint16_t size() const { return rings_.size; }

  /// Asks the driver to notify when it adds the next request, and says how many are there now (at most size()). None is
  /// missed in between. The way to serve a queue, on a vCPU's thread with an `if`, on a device's own with a `while`:
  ///     for (auto left = queue.arm(); left > 0 && queue.pop(chain); --left) { ...; queue.push(chain, written); }
  ///     queue.interrupt();
  std::uint16_t arm();
  /// The driver need not notify: the device will look by itself. Until the next arm().
  void disarm();
  /// The next request. False: there is none, or the driver broke the rules.
  [[nodiscard]] bool pop(Chain& chain);
  /// Whether there is a next request.
  [[nodiscard]] bool waiting();
  /// Gives the last `count` requests back untaken; none of them has been pushed.
  void unpop(std::uint16_t count = 1);
  /// Answers a request, in any order. `written_bytes`: of the writable part, from its beginning.
  void push(const Chain& chain, std::uint32_t written_bytes);
  /// The same for several that the driver shall see at once: fill() each, then publish().
  void fill(const Chain& chain, std::uint32_t written_bytes);
  void publish();
  /// Raises the used-buffer interrupt if there is something new and the driver wants to know. Once after several
  /// push().
  void interrupt();
  /// Taken and not yet answered.
  [[nodiscard]] std::uint16_t in_flight() const {
    return static_cast<std::uint16_t>(indices_.next_available - indices_.next_used);
  }

  // ---- for the transport

  /// Size, alignment and place of the rings are usable.
  [[nodiscard]] static bool fits(const memory::Layout& layout, const Rings& rings, std::uint16_t size_max);
  /// `rings` fits. Indices are zero, or those of a saved queue.
  void enable(const Rings& rings, std::uint64_t features, const Indices& indices);
  void disable();
  [[nodiscard]] const Indices& indices() const { return indices_; }

 private:
  struct Table {
    std::uint64_t address;
    std::uint32_t entries;
  };
  struct Descriptor {
    std::uint64_t address;
    std::uint32_t bytes;
    std::uint16_t flags;
    std::uint16_t next;
  };

  bool fail(GuestFault fault);  // always false
  [[nodiscard]] bool usable() const { return enabled_ && !signals_.needs_reset(); }
  bool look();  // how far the driver is: seen_
  [[nodiscard]] std::uint16_t load(std::uint64_t address) const;
  void store(std::uint64_t address, std::uint16_t value);
  [[nodiscard]] Descriptor descriptor(const Table& table, std::uint32_t index) const;
  bool walk(std::uint16_t head, Chain& chain);
  bool enter_indirect(const Descriptor& descriptor, bool nested, Table& table);
  bool append(const Descriptor& descriptor, Chain& chain);

  memory::GuestMemory& memory_;
  VirtioSignals& signals_;
  bool enabled_ = false;
  bool event_idx_ = false;
  bool indirect_ = false;
  bool disarmed_ = true;  // the driver may have been told not to notify
  Rings rings_;
  Indices indices_;
  std::uint16_t seen_ = 0;  // the driver's index when last read
};

}  // namespace fvmm::devices
