// virtio-balloon (virtio 1.2, section 5.5): the driver gives pages up (inflates) until it has as many as the host
// wants, takes them back (deflates), reports free pages, and tells its statistics. What it gives up the host gets back
// by GuestMemory::discard(). Serves on the vCPU's thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "devices/virtio_device.h"

namespace fvmm::devices {

inline constexpr std::uint16_t kBalloonQueueSize = 128;
inline constexpr std::size_t kBalloonConfigBytes = 8;         // num_pages, actual
inline constexpr std::size_t kBalloonRequestPfnsMax = 4096;   // of one request to inflate or deflate; Linux sends 256
inline constexpr std::uint64_t kBalloonDiscardPages = 32768;  // given back by one notification; Linux reports so many
inline constexpr std::size_t kBalloonStatsRead = 64;          // entries of one buffer of statistics
inline constexpr std::size_t kBalloonStats = 16;              // tags that there are
inline constexpr std::uint32_t kBalloonStateVersion = 1;

/// A tag's name as Linux has it: "free_memory".
std::string_view balloon_stat_name(std::size_t tag);

/// By tag; what the driver did not tell is empty.
using BalloonStatistics = std::array<std::optional<std::uint64_t>, kBalloonStats>;

/// Pages are of 4 KiB. The counts began when the VM came to this host.
struct BalloonFigures {
  std::uint32_t target_pages = 0;
  std::uint32_t actual_pages = 0;    // as the driver says
  std::uint64_t given_back = 0;      // pages, inflated or reported: their memory is the host's again
  std::uint64_t not_given_back = 0;  // inflated or reported, but kept: past a limit, after a pause, kernel refused
  BalloonStatistics statistics;      // the last ones
};

class VirtioBalloon final : public VirtioDevice {
 public:
  [[nodiscard]] std::uint32_t type() const override;
  [[nodiscard]] std::uint64_t features() const override;  // STATS_VQ, DEFLATE_ON_OOM, REPORTING
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] std::size_t config_bytes() const override { return kBalloonConfigBytes; }
  void read_config(std::uint64_t offset, std::span<std::byte> out) override;
  void write_config(std::uint64_t offset, std::span<const std::byte> in) override;
  void activate(const Driver& driver) override { driver_ = driver; }
  void notify(unsigned queue) override;
  void reset() override;
  Status quiesce(const Deadline& deadline) override;
  void resume() override;
  /// Version 1: target, actual, statistics.
  [[nodiscard]] DeviceState save() const override;
  Status load(const DeviceState& state) override;

  /// How many pages the driver shall hold; tells it. Also while quiet or without a driver. Bus lock.
  void set_target(std::uint32_t pages);
  /// Asks the driver for newer statistics, and does not wait for them. Nothing without a driver that has some, or while
  /// quiet. Bus lock.
  void ask_statistics();
  /// Thread: any.
  [[nodiscard]] BalloonFigures figures() const;

 private:
  enum class Role { kNone, kInflate, kDeflate, kStatistics, kReporting };
  /// What one call may still discard.
  struct Budget {
    std::uint64_t pages;
  };
  [[nodiscard]] Role role(unsigned queue) const;
  void serve(unsigned queue, Budget& budget);
  bool take_pfns(bool inflate, Budget& budget);
  void take_report(Budget& budget);
  void take_statistics(Virtqueue& queue);
  void give_back(std::uint64_t address, std::uint64_t bytes, Budget& budget);
  void let_statistics_go(Virtqueue& queue);
  Virtqueue* statistics_queue();

  Driver driver_;                    // bus lock
  Chain chain_;                      // bus lock; kept for its memory
  Chain held_;                       // bus lock; the buffer of statistics that waits to be asked for
  bool holds_ = false;               // bus lock; there is one
  bool quiet_ = true;                // bus lock
  bool complained_ = false;          // bus lock; the log has the kernel's reason once
  std::vector<std::uint32_t> pfns_;  // bus lock; kept for its memory
  mutable std::mutex mutex_;         // innermost
  BalloonFigures figures_;           // mutex_
};

}  // namespace fvmm::devices
