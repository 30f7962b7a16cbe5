// Where a network device's frames go to and come from: a TAP device, or a unix stream socket. Opened by name in one
// process (net_tap.h, net_stream.h) and used by descriptor in another, which needs no right to open it.
//
// A frame is always a virtio_net_hdr of 12 bytes (virtio 1.2, section 5.1.6) and the Ethernet frame behind it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "devices/device.h"

namespace fvmm::devices {

inline constexpr std::size_t kNetHeaderBytes = 12;  // struct virtio_net_hdr, with num_buffers
inline constexpr std::size_t kEthernetHeaderBytes = 14;
inline constexpr std::size_t kNetDataBytesMax = 65'554;  // an IP packet of 64 KiB, its Ethernet header, a VLAN tag
inline constexpr std::size_t kNetFrameBytesMax = kNetHeaderBytes + kNetDataBytesMax;

/// What the guest takes unfinished from the backend (section 5.1.6.4): checksums, TCP segments larger than the MTU.
struct NetOffloads {
  bool checksum = false;
  bool tso4 = false;
  bool tso6 = false;
};

/// Owner: the device. Every method is for the device's thread, or for whoever has taken the device from it; only emit()
/// and the counts are for any.
class NetBackend : public OutputSink {
 public:
  /// Whether headers mean something: the guest may leave checksums and segmentation to the backend, and the other way
  /// round. Constant.
  [[nodiscard]] virtual bool offloads() const = 0;
  /// What receive() may leave to the guest.
  virtual Status set_offloads(const NetOffloads& offloads) = 0;
  /// To poll; -1 once the other end is gone.
  [[nodiscard]] virtual int fd() const = 0;
  /// The next frame, at most out.size() bytes (kNetFrameBytesMax). Nothing: there is none, or the other end is gone.
  virtual std::optional<std::size_t> receive(std::span<std::byte> out) = 0;
  /// Forgets frames that wait from a time when nobody could want them. At most a queue's length.
  virtual void discard_waiting() = 0;
  /// Sends a whole frame or keeps it until flush(); never waits. What it must drop is counted. Thread: any.
  void emit(std::span<const std::byte> frame) override = 0;
  /// Frames are kept: nothing more should be sent before fd() is writable and flush() has been called.
  [[nodiscard]] virtual bool backlogged() const { return false; }
  virtual void flush() {}
  /// The descriptor is given back; nothing is sent or received any more. Nobody polls fd() meanwhile.
  virtual void close() = 0;

  [[nodiscard]] std::uint64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }

 protected:
  void count_dropped() { dropped_.fetch_add(1, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> dropped_{0};  // frames that could not be sent
};

}  // namespace fvmm::devices
