// A connected unix stream socket as a backend: each Ethernet frame behind its length, 4 bytes, big endian, as QEMU's
// "-netdev stream" has it. No virtio header travels, so nothing is offloaded.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/unique_fd.h"
#include "devices/net_backend.h"
#include "devices/output_gate.h"

namespace fvmm::devices {

/// What the other end has not taken yet: as much as a gate may hold back, and a frame.
inline constexpr std::size_t kNetBacklogBytesMax = kHeldOutputBytesMax + 2 * kNetFrameBytesMax;

/// Connects to who listens at `path`. kInvalidArgument (a path too long), kNotFound, kUnavailable (nobody listens),
/// kPermissionDenied, kIo; each names the path and the fix.
Result<UniqueFd> open_net_stream(const std::string& path);

class StreamBackend final : public NetBackend {
 public:
  explicit StreamBackend(UniqueFd socket);  // connected

  [[nodiscard]] bool offloads() const override { return false; }
  Status set_offloads(const NetOffloads&) override { return {}; }
  [[nodiscard]] int fd() const override { return gone_ ? -1 : socket_.get(); }
  std::optional<std::size_t> receive(std::span<std::byte> out) override;
  void discard_waiting() override {}  // a peer of our own: what it sends is for us, whenever it comes
  void emit(std::span<const std::byte> frame) override;
  [[nodiscard]] bool backlogged() const override;
  void flush() override;
  void close() override;

 private:
  [[nodiscard]] std::size_t length() const;  // of the frame that comes in; its prefix is whole
  bool fill();
  void lost(const char* why);

  UniqueFd socket_;
  std::atomic<bool> gone_{false};

  // Of the device's thread:
  std::array<std::byte, 4> prefix_{};  // the length of the frame that comes in, as far as it is there
  std::size_t prefix_bytes_ = 0;
  std::vector<std::byte> data_;  // the frame itself
  std::size_t data_bytes_ = 0;
  std::array<std::byte, 4> next_prefix_{};  // what came behind it
  std::size_t next_prefix_bytes_ = 0;

  mutable std::mutex mutex_;        // sending, and closing against it
  std::vector<std::byte> backlog_;  // mutex_; a frame's rest, then whole frames
  std::size_t backlog_sent_ = 0;    // mutex_; bytes of backlog_ that have left
};

}  // namespace fvmm::devices
