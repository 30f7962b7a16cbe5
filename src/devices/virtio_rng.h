// virtio-rng (virtio 1.2, section 5.4): fills the driver's buffers with random bytes. Serves on the vCPU's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "devices/virtio_device.h"

namespace fvmm::devices {

inline constexpr std::uint16_t kRngQueueSize = 64;
inline constexpr std::size_t kRngRequestBytesMax = 4096;  // of one request; the driver asks again for more
inline constexpr std::uint32_t kRngStateVersion = 1;

/// Fills a span with random bytes.
using Entropy = std::function<void(std::span<std::byte>)>;
/// getrandom(2). Never fails once the host has booted.
void host_entropy(std::span<std::byte> out);

class VirtioRng final : public VirtioDevice {
 public:
  explicit VirtioRng(Entropy entropy = host_entropy) : entropy_(std::move(entropy)) {}

  [[nodiscard]] std::uint32_t type() const override;
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  void activate(const Driver& driver) override { driver_ = driver; }
  void notify(unsigned queue) override;
  void reset() override { driver_ = {}; }
  Status quiesce(const Deadline& deadline) override;
  void resume() override;
  /// Nothing to remember: version 1, no bytes.
  [[nodiscard]] DeviceState save() const override { return {.version = kRngStateVersion, .bytes = {}}; }
  Status load(const DeviceState& state) override;

 private:
  void serve(Virtqueue& queue);

  const Entropy entropy_;
  Driver driver_;  // bus lock
  Chain chain_;    // bus lock; kept for its memory
};

}  // namespace fvmm::devices
