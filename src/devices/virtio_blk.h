// virtio-blk (virtio 1.2, section 5.2): a disk::Engine behind one queue, served by a thread of its own.
//
//   vCPU ─ doorbell (eventfd) ─► I/O thread: pop ─► Engine ─► io_uring ─► files
//                                            push ◄─ ended ◄┘   interrupt once a batch
//
// The lock is held by whoever has queue and engine: the thread while it works, or the caller of quiesce() and reset().
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/deadline_mutex.h"
#include "base/unique_fd.h"
#include "devices/output_gate.h"
#include "devices/virtio_device.h"
#include "disk/engine.h"

namespace fvmm::devices {

inline constexpr std::uint16_t kBlkQueueSize = 256;
inline constexpr std::uint32_t kBlkSegmentsMax = 254;                  // data buffers of one request
inline constexpr std::uint32_t kBlkRangeSectorsMax = 2 * 1024 * 1024;  // of one discard or write-zeroes: 1 GiB
inline constexpr std::uint32_t kBlkStateVersion = 1;
inline constexpr unsigned kBlkFailuresLoggedMax = 64;  // requests that a guest can put into our log, per disk
inline constexpr std::size_t kBlkIdBytes = 20;         // VIRTIO_BLK_T_GET_ID

struct VirtioBlkSetup {
  disk::Stack stack;
  std::unique_ptr<disk::FileIo> io;
  OutputGate& gate;  // writes to a raw image leave the VM; layers are its own state
  std::string id;    // what the guest reads as serial number; cut to kBlkIdBytes
};

class VirtioBlk final : public VirtioDevice {
 public:
  explicit VirtioBlk(VirtioBlkSetup setup);
  ~VirtioBlk() override;
  VirtioBlk(const VirtioBlk&) = delete;
  VirtioBlk& operator=(const VirtioBlk&) = delete;
  VirtioBlk(VirtioBlk&&) = delete;
  VirtioBlk& operator=(VirtioBlk&&) = delete;

  [[nodiscard]] std::uint32_t type() const override;
  [[nodiscard]] std::uint64_t features() const override;
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] std::size_t config_bytes() const override;
  void read_config(std::uint64_t offset, std::span<std::byte> out) override;
  void activate(const Driver& driver) override;
  void notify(unsigned queue) override;
  void reset() override;
  /// kDeadlineExceeded also while the gate holds writes: they end only with their epoch.
  Status quiesce(const Deadline& deadline) override;
  void resume() override;
  [[nodiscard]] DeviceState save() const override;
  Status load(const DeviceState& state) override;
  [[nodiscard]] int doorbell(unsigned queue) const override;

  [[nodiscard]] disk::EngineCounters counters() const;
  /// All that was answered is on the files, and what their maps say of it. kDeadlineExceeded, kIo. Only while quiet.
  Status flush(const Deadline& deadline);
  /// Of the layer that is written to. Not of a raw disk.
  [[nodiscard]] disk::LayerInfo top() const;
  /// As disk::Engine::lie_on(). Only while quiet.
  Status lie_on(disk::LowerLayers lower);
  /// As disk::Engine::put_over(). Only while quiet, and flushed.
  Result<std::shared_ptr<disk::Layer>> put_over(std::unique_ptr<disk::Layer> next);
  /// Sees what another host wrote to the files since they were opened. As disk::Engine::reread(). Only while quiet.
  Status reread();

 private:
  /// A chain taken and not yet answered.
  struct Pending {
    Chain chain;
    std::uint64_t filled = 0;  // bytes of the writable part that a success has filled before the status
  };
  enum class Answer : std::uint8_t { kOk = 0, kFailed = 1, kUnsupported = 2 };  // section 5.2.6, status

  void run();
  void work();                                   // mutex_ held
  void serve(Virtqueue& queue);                  // mutex_ held
  void begin(std::unique_ptr<Pending> pending);  // mutex_ held
  void start(disk::Request request);             // mutex_ held
  void take_cleared();                           // mutex_ held
  void ended(std::uint64_t token, const Status& status);
  void answer(const Pending& pending, Answer answer);
  bool drain(const Deadline& deadline);  // mutex_ held
  void wake() const;

  const std::uint64_t sectors_;
  const std::array<std::byte, 60> config_;
  const bool raw_;
  const bool writable_;
  const std::string id_;
  OutputGate& gate_;
  UniqueFd doorbell_;

  mutable DeadlineMutex mutex_;  // queue, engine and all below, down to quiet_
  std::unique_ptr<disk::Engine> engine_;
  Driver driver_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Pending>> pending_;  // by token; null: of flush()
  std::uint64_t next_token_ = 1;
  std::uint64_t flush_token_ = 0;  // of flush()
  std::optional<Status> flushed_;  // how that one ended
  unsigned failures_logged_ = 0;
  bool quiet_ = true;
  bool stopping_ = false;

  std::mutex cleared_mutex_;            // innermost but for the gate's
  std::vector<disk::Request> cleared_;  // cleared_mutex_; the gate has let them through

  std::thread thread_;
};

}  // namespace fvmm::devices
