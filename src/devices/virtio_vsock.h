// virtio-vsock (virtio 1.2, section 5.10): connections between programs of the host and of the guest, served by a
// thread of its own.
//
//   vCPU ─ doorbell (eventfd) ─► I/O thread: transmit: pop ─► copy ─► OutputGate ─► VsockInbox ─► VsockHub ─► programs
//                                            receive:  a buffer is there ─► VsockHub: the next packet ─► copy, push
//                                            event:    after a move, that all connections are gone
//
// The lock is held by whoever has the queues: the thread for one turn, or the caller of the contract's other methods,
// who goes before the thread's next turn. Connections belong to the thread alone; a reset of the guest's reaches them
// through the gate as well, behind what the guest has sent before.
#pragma once

#include <poll.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "devices/output_gate.h"
#include "devices/turn_lock.h"
#include "devices/virtio_device.h"
#include "devices/vsock_hub.h"
#include "devices/vsock_inbox.h"

namespace fvmm::devices {

inline constexpr std::uint16_t kVsockQueueSize = 256;
inline constexpr std::uint16_t kVsockEventQueueSize = 64;
inline constexpr std::uint32_t kVsockStateVersion = 1;
inline constexpr unsigned kVsockTurnPackets = 16;             // each way, before the thread lets others have the device
inline constexpr std::size_t kVsockReadBytesMax = 64 * kKiB;  // of a program's data in one packet

struct VirtioVsockSetup {
  VsockHubSetup hub;
  OutputGate& gate;
};

class VirtioVsock final : public VirtioDevice {
 public:
  explicit VirtioVsock(VirtioVsockSetup setup);
  ~VirtioVsock() override;
  VirtioVsock(const VirtioVsock&) = delete;
  VirtioVsock& operator=(const VirtioVsock&) = delete;
  VirtioVsock(VirtioVsock&&) = delete;
  VirtioVsock& operator=(VirtioVsock&&) = delete;

  [[nodiscard]] std::uint32_t type() const override;
  [[nodiscard]] std::uint64_t features() const override;
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] std::size_t config_bytes() const override;
  void read_config(std::uint64_t offset, std::span<std::byte> out) override;
  void activate(const Driver& driver) override;
  void notify(unsigned queue) override;
  void reset() override;
  Status quiesce(const Deadline& deadline) override;
  /// From the first time on programs can connect: until then the VM may run elsewhere.
  void resume() override;
  [[nodiscard]] DeviceState save() const override;
  /// Connections stay where they were: the driver is told that they are gone, before anything else.
  Status load(const DeviceState& state) override;
  [[nodiscard]] int doorbell(unsigned queue) const override;

  /// For good, the guest has gone elsewhere: nobody is connected any more, and nobody can connect. Thread: any but the
  /// device's.
  void disconnect();
  [[nodiscard]] VsockCounters counters() const;                         // thread: any
  [[nodiscard]] std::uint32_t guest_cid() const { return guest_cid_; }  // thread: any
  [[nodiscard]] const std::string& path() const { return path_; }       // thread: any

 private:
  void run();
  int turn(std::vector<pollfd>& fds);
  bool serve();
  void report_reset();
  void take_arrivals();
  bool transmit();
  bool send(const Chain& chain);
  bool tell_of_move();
  bool receive();
  bool fill(Virtqueue& queue);
  [[nodiscard]] bool guest_there() const;
  void end_thread();

  const std::uint32_t guest_cid_;
  const std::string path_;
  OutputGate& gate_;
  const Clock& clock_;
  const std::shared_ptr<VsockInbox> inbox_ = std::make_shared<VsockInbox>();  // the gate may keep it longer

  mutable TurnLock turns_;  // the queues and all below, down to stopping_
  VsockHub hub_;
  Driver driver_;
  Chain chain_;                     // kept for its memory, as is the next
  std::vector<std::byte> data_;     // kVsockReadBytesMax
  bool gate_full_ = false;          // until the next resume()
  bool move_due_ = false;           // the driver has not been told of it
  bool driver_gone_ = false;        // and the hub is to hear of it, through the gate
  std::uint64_t resets_ = 0;        // so often has a driver gone, as far as reported
  std::uint64_t resets_heard_ = 0;  // and come out of the gate: what a gate forgets, a later one makes up for
  SteadyTime quiet_since_{};
  bool quiet_ = true;
  bool stopping_ = false;

  std::mutex ending_mutex_;  // end_thread(), outermost
  std::thread thread_;
};

}  // namespace fvmm::devices
