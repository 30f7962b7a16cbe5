// All connections of a vsock device: whom a packet of the guest is for, which packets there are for the guest, and what
// the programs at the host's sockets do. It knows neither queues nor the output gate.
//
//   guest's packet ─► receive() ─► connection ─► program         program ─► look() ─► connection ─► next() ─► guest
//
// Owner: the device. Thread: the device's, or whoever has taken the device from it. It waits for nothing.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "devices/vsock_callers.h"
#include "devices/vsock_connection.h"
#include "devices/vsock_host.h"
#include "devices/vsock_packet.h"

namespace fvmm::devices {

inline constexpr std::size_t kVsockConnectionsMax = 256;  // programs that have not said what they want included
inline constexpr std::size_t kVsockResetsMax = 256;       // answers owed to packets that are for nobody
inline constexpr std::chrono::milliseconds kVsockAcceptRetry{50};  // when descriptors or memory have run out

/// Since the device was made; no device state.
struct VsockCounters {
  std::size_t connections = 0;       // now
  std::uint64_t opened = 0;          // answered by the guest, or asked for by it and taken here
  std::uint64_t refused = 0;         // by the guest, by its silence, by a limit, or because nobody listens
  std::uint64_t received_bytes = 0;  // of data, by the guest
  std::uint64_t sent_bytes = 0;      // by the guest
  std::uint64_t strays = 0;          // packets from an address that is not the guest's
};

struct VsockHubSetup {
  std::uint32_t guest_cid = 0;
  std::unique_ptr<VsockHost> host;
  const Clock& clock = system_clock();
  std::uint32_t first_port = 0;  // of the host's side, for the first program that connects
};

class VsockHub {
 public:
  explicit VsockHub(VsockHubSetup setup);

  // ---- the guest's side

  /// So much is owed to the guest that it has to take some of it before more of its packets are received.
  [[nodiscard]] bool full() const { return resets_.size() >= kVsockResetsMax; }
  void receive(const VsockHeader& header, std::span<const std::byte> data);
  /// Perhaps: next() may still find nothing.
  [[nodiscard]] bool has_packet() const { return !resets_.empty() || !ready_.empty(); }
  /// The next packet for the guest, its data in the first `len` bytes of `room`, which is not empty.
  std::optional<VsockHeader> next(std::span<std::byte> room);
  /// The guest has another driver, or will have: its connections are over, without a word to it.
  void forget_guest();

  // ---- the programs' side

  /// The VM may run here.
  Status listen() { return host_->listen(); }
  /// Appends what to poll for.
  void watch(std::vector<pollfd>& fds);
  /// What poll(2) said of just that. @param guest_there  whether it has a driver: if not, programs are turned away
  void look(std::span<const pollfd> fds, bool guest_there);
  /// For poll(2), until the next deadline; -1: there is none.
  [[nodiscard]] int wait_ms() const;
  /// Time that does not count has passed: the guest was paused.
  void postpone(std::chrono::nanoseconds by);
  /// For good: nobody is connected any more, and nobody can connect.
  void close();

  [[nodiscard]] std::uint32_t guest_cid() const { return guest_cid_; }
  [[nodiscard]] std::string path() const { return host_->path(); }
  [[nodiscard]] VsockCounters counters() const;

 private:
  struct Entry {
    VsockConnection connection;
    bool queued = false;  // is in ready_
  };
  using Entries = std::map<VsockPorts, Entry>;

  void accept(SteadyTime now);
  void place_call(VsockCall call, SteadyTime now);
  void take_request(const VsockHeader& request);
  void owe_reset(const VsockHeader& packet);
  Entries::iterator settle(Entries::iterator at);
  void remember_deadline(std::optional<SteadyTime> deadline);

  const std::uint32_t guest_cid_;
  const std::unique_ptr<VsockHost> host_;
  const Clock& clock_;
  std::uint32_t next_port_;
  VsockCallers callers_;
  Entries connections_;
  std::deque<VsockPorts> ready_;    // have something for the guest, each once; in turns
  std::deque<VsockHeader> resets_;  // at most kVsockResetsMax and one for each connection
  std::optional<SteadyTime> deadline_;
  std::optional<SteadyTime> accept_again_;
  VsockCounters counters_;
};

}  // namespace fvmm::devices
