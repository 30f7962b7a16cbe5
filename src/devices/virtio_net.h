// virtio-net (virtio 1.2, section 5.1): one pair of queues and a control queue before a NetBackend, served by a thread
// of its own.
//
//   vCPU ─ doorbell (eventfd) ─► I/O thread: transmit: pop ─► copy ─► OutputGate ─► backend
//                                            receive:  a buffer is there ─► read one frame ─► filter ─► copy, push
//                                            control:  modes, addresses, announce
//
// The lock is held by whoever has the queues: the thread for one turn, or the caller of the contract's other methods,
// who goes before the thread's next turn.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/mac.h"
#include "base/unique_fd.h"
#include "devices/net_backend.h"
#include "devices/net_filter.h"
#include "devices/output_gate.h"
#include "devices/turn_lock.h"
#include "devices/virtio_device.h"

namespace fvmm::devices {

inline constexpr std::uint16_t kNetQueueSize = 256;
inline constexpr std::uint16_t kNetControlQueueSize = 64;
inline constexpr std::uint32_t kNetStateVersion = 1;
inline constexpr unsigned kNetTurnFrames = 64;     // each way, before the thread lets others have the device
inline constexpr unsigned kNetAnnounceRounds = 5;  // RARP frames of one announcement, 50 ms apart and then longer

struct VirtioNetSetup {
  std::unique_ptr<NetBackend> backend;
  OutputGate& gate;
  Mac mac{};  // of the configuration
};

/// Since the device was made; no device state.
struct NetCounters {
  std::uint64_t received_frames = 0;  // by the guest
  std::uint64_t received_bytes = 0;
  std::uint64_t sent_frames = 0;  // by the guest; frames of an announcement not counted
  std::uint64_t sent_bytes = 0;
  std::uint64_t receive_dropped = 0;  // no Ethernet frame, not negotiated, larger than the guest's buffers can be
  std::uint64_t filtered = 0;         // of other stations
  std::uint64_t send_dropped = 0;     // no Ethernet frame, not negotiated, or not taken by the backend
  std::uint64_t announced = 0;        // RARP frames
};

class VirtioNet final : public VirtioDevice {
 public:
  explicit VirtioNet(VirtioNetSetup setup);
  ~VirtioNet() override;
  VirtioNet(const VirtioNet&) = delete;
  VirtioNet& operator=(const VirtioNet&) = delete;
  VirtioNet(VirtioNet&&) = delete;
  VirtioNet& operator=(VirtioNet&&) = delete;

  [[nodiscard]] std::uint32_t type() const override;
  [[nodiscard]] std::uint64_t features() const override;
  [[nodiscard]] std::span<const std::uint16_t> queue_sizes() const override;
  [[nodiscard]] std::size_t config_bytes() const override;
  void read_config(std::uint64_t offset, std::span<std::byte> out) override;
  void activate(const Driver& driver) override;
  void notify(unsigned queue) override;
  void reset() override;
  Status quiesce(const Deadline& deadline) override;
  void resume() override;
  [[nodiscard]] DeviceState save() const override;
  /// The address of a state with another configured one is not taken over: the VM is a clone.
  Status load(const DeviceState& state) override;
  [[nodiscard]] int doorbell(unsigned queue) const override;

  /// The guest has come to another place in the network: RARP frames tell the switches, and the driver is asked to
  /// announce itself if it can (section 5.1.6.5.4). Not while its driver uses the address of the VM that it was cloned
  /// from: that VM has it. Thread: any. Frames leave only after resume().
  void announce();
  /// Gives the backend back, for good: the guest has gone elsewhere. Thread: any but the device's.
  void disconnect();
  [[nodiscard]] NetCounters counters() const;  // thread: any
  [[nodiscard]] Mac mac() const;               // as the configuration space shows it; thread: any
  [[nodiscard]] bool link_up() const;          // thread: any

 private:
  enum class Delivered : std::uint8_t { kYes, kDropped, kNoRoom };
  struct Wait {  // for what the thread polls
    short events = 0;
    int milliseconds = -1;
  };

  void run();
  Wait work();
  bool transmit();
  bool send(const Chain& chain);
  bool receive();
  bool fetch();
  Delivered deliver(Virtqueue& queue);
  struct Gathered {
    std::uint16_t chains = 0;
    std::uint64_t room = 0;  // bytes
  };
  Gathered gather(Virtqueue& queue, std::uint16_t most);
  void fill(Virtqueue& queue, std::uint16_t chains);
  bool serve_control();
  [[nodiscard]] bool obey(const Chain& chain);
  bool set_mac_table(const Chain& chain);
  void follow_link();
  int send_announcements();
  [[nodiscard]] bool negotiated(std::uint64_t feature) const { return (driver_.features & feature) != 0; }
  void set_status(std::uint16_t bit, bool on);
  void show_mac(const Mac& mac);
  void end_thread();
  void wake() const;

  const Mac configured_;
  OutputGate& gate_;
  UniqueFd doorbell_;
  std::atomic<std::uint64_t> config_;  // struct virtio_net_config: mac, status; changed with the lock held

  mutable TurnLock turns_;  // the queues and all below, down to stopping_
  std::unique_ptr<NetBackend> backend_;
  Driver driver_;
  NetFilter filter_;
  NetCounters counters_;
  Chain chain_;                      // kept for its memory, as are the next three
  std::vector<Chain> chains_;        // at most a queue's size
  std::vector<std::byte> sending_;   // kNetFrameBytesMax
  std::vector<std::byte> received_;  // kNetFrameBytesMax
  std::size_t received_bytes_ = 0;   // of a frame that waits for buffers; 0: none
  bool gate_full_ = false;           // until the next resume()
  bool fresh_ = false;               // the driver has just come: what waits in the backend is not for it
  bool readable_wanted_ = false;     // the guest has buffers, the backend had nothing
  unsigned announcements_left_ = 0;
  SteadyTime next_announcement_{};
  bool quiet_ = true;
  bool stopping_ = false;

  std::mutex ending_mutex_;  // end_thread(), outermost
  std::thread thread_;
};

}  // namespace fvmm::devices
