// One connection between a program of the host and one of the guest (virtio 1.2, section 5.10.6): what the guest's
// packets do to it, and which packets it has for the guest. Data of the guest waits here until the program takes it, at
// most kVsockBufferBytes, which is what the guest is told; data of the program stays in its socket until the guest has
// room.
//
//   Asking ─ RESPONSE ─► Open ─ the program is gone ─► Closing ─┐
//     │                    │                                    ├─► over
//     └─ RST, deadline ────┴─ RST, SHUTDOWN of both ways ───────┘
//
// Owner: VsockHub, on the device's thread. It waits for nothing.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "devices/vsock_packet.h"

namespace fvmm::devices {

inline constexpr std::uint32_t kVsockBufferBytes = 256 * 1024;  // of one connection: buf_alloc, as Linux has it
inline constexpr std::chrono::seconds kVsockAnswerWait{5};      // for the guest to answer a request
inline constexpr std::chrono::seconds kVsockCloseWait{8};       // for the guest's last word, as Linux waits

class VsockConnection {
 public:
  enum class End : std::uint8_t {
    kNo,
    kSilent,  // over: the guest knows, or never heard of it
    kReset    // over, and the guest is to be told
  };

  /// A program wants to reach the guest.
  static VsockConnection to_guest(VsockPorts ports, UniqueFd socket, SteadyTime now);
  /// The guest wanted to reach a program, and that one has taken it.
  static VsockConnection from_guest(VsockPorts ports, UniqueFd socket, const VsockHeader& request);

  // ---- the guest's side

  void receive(const VsockHeader& header, std::span<const std::byte> data, SteadyTime now);
  /// Perhaps: what poll(2) has promised may be gone.
  [[nodiscard]] bool has_packet() const;
  /// The next packet, its data in the first `len` bytes of `room`, which is not empty. CIDs are left to the caller.
  std::optional<VsockHeader> next(std::span<std::byte> room, SteadyTime now);

  // ---- the program's side

  /// What to poll for; -1: nothing.
  [[nodiscard]] pollfd watch() const;
  void look(short events, SteadyTime now);

  [[nodiscard]] std::optional<SteadyTime> deadline() const { return deadline_; }
  void expire(SteadyTime now);
  /// Time that does not count has passed.
  void postpone(std::chrono::nanoseconds by);
  [[nodiscard]] End end() const { return end_; }
  [[nodiscard]] bool asking() const { return phase_ == Phase::kAsking; }
  [[nodiscard]] VsockPorts ports() const { return ports_; }
  /// The guest's bytes that wait for the program; never more than kVsockBufferBytes.
  [[nodiscard]] std::size_t waiting() const { return waiting_.size() - waiting_from_; }

 private:
  enum class Phase : std::uint8_t { kAsking, kOpen, kClosing };
  enum Owed : unsigned { kRequest = 1, kResponse = 2, kShutdown = 4, kCreditRequest = 8, kCreditUpdate = 16 };

  VsockConnection(VsockPorts ports, UniqueFd socket, Phase phase)
      : ports_(ports), socket_(std::move(socket)), phase_(phase) {}
  void opened();
  void take_data(std::span<const std::byte> data, SteadyTime now);
  void guest_shuts_down(std::uint32_t flags);
  bool pass_on(std::span<const std::byte> data, std::size_t& passed);
  void flush(SteadyTime now);
  void finish_halves();
  void update_credit();
  std::uint32_t read_into(std::span<std::byte> room, SteadyTime now);
  [[nodiscard]] bool unread() const;
  void end_of_data(SteadyTime now);
  void program_is_deaf(SteadyTime now);
  void shut_down(std::uint32_t flags, SteadyTime now);
  void over(End how);
  bool pay(Owed what);
  [[nodiscard]] bool may_read() const;
  [[nodiscard]] std::uint32_t credit() const;

  VsockPorts ports_;
  UniqueFd socket_;
  Phase phase_;
  End end_ = End::kNo;
  unsigned owed_ = 0;              // to the guest; bits of Owed
  std::uint32_t our_flags_ = 0;    // of SHUTDOWN: what the guest was told, or is owed
  std::uint32_t guest_flags_ = 0;  // and what it has told
  bool readable_ = false;          // there may be data, or its end
  bool read_ended_ = false;
  bool hung_up_ = false;  // poll(2) would say so for ever
  bool write_shut_ = false;
  bool credit_asked_ = false;

  // Free-running, modulo 2^32 (section 5.10.6.3).
  std::uint32_t guest_room_ = 0;       // its buf_alloc
  std::uint32_t guest_forwarded_ = 0;  // its fwd_cnt
  std::uint32_t sent_ = 0;             // to the guest
  std::uint32_t received_ = 0;         // from the guest
  std::uint32_t forwarded_ = 0;        // of these, to the program
  std::uint32_t told_ = 0;             // forwarded_ as the guest knows it

  std::vector<std::byte> waiting_;
  std::size_t waiting_from_ = 0;
  std::optional<SteadyTime> deadline_;
};

}  // namespace fvmm::devices
