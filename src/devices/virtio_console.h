// virtio-console (virtio 1.2, section 5.3), one port: queue 0 brings input to the guest, queue 1 takes its output.
// Serves on the vCPU's thread; output leaves through a sink, input comes from push_input().
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>

#include "devices/virtio_device.h"

namespace fvmm::devices {

inline constexpr std::uint16_t kConsoleQueueSize = 64;
inline constexpr std::size_t kConsoleConfigBytes = 12;         // cols, rows, max_nr_ports, emerg_wr
inline constexpr std::size_t kConsoleRequestBytesMax = 65536;  // of output in one request
inline constexpr std::size_t kConsoleQueueBytesMax = 4096;     // input that waits on the host for a buffer
inline constexpr std::uint32_t kVirtioConsoleStateVersion = 1;

class VirtioConsole final : public VirtioDevice {
 public:
  /// @param out  receives what the guest writes; must outlive the device
  explicit VirtioConsole(OutputSink& out) : out_(out) {}

  [[nodiscard]] std::uint32_t type() const override;
  [[nodiscard]] std::uint64_t features() const override;  // VIRTIO_CONSOLE_F_EMERG_WRITE
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] std::size_t config_bytes() const override { return kConsoleConfigBytes; }
  void write_config(std::uint64_t offset, std::span<const std::byte> in) override;
  void activate(const Driver& driver) override { driver_ = driver; }
  void notify(unsigned queue) override;
  void reset() override { driver_ = {}; }
  Status quiesce(const Deadline& deadline) override;
  void resume() override;
  /// Version 1: the input that waits.
  [[nodiscard]] DeviceState save() const override;
  Status load(const DeviceState& state) override;

  /// Input from the host. Returns how many bytes were taken, from the front; the rest stays with the caller, who comes
  /// back later. None while quiet. Thread: any, with the bus lock held.
  [[nodiscard]] std::size_t push_input(std::span<const std::byte> bytes);
  /// Output beyond kConsoleRequestBytesMax in one request, which is lost. Bus lock.
  [[nodiscard]] std::uint64_t cut_bytes() const { return cut_bytes_; }

 private:
  void take_output();
  void give_input();

  OutputSink& out_;
  Driver driver_;                // bus lock
  Chain chain_;                  // bus lock; kept for its memory
  std::deque<std::byte> input_;  // bus lock; at most kConsoleQueueBytesMax
  std::uint64_t cut_bytes_ = 0;  // bus lock
  bool quiet_ = true;            // bus lock
};

}  // namespace fvmm::devices
