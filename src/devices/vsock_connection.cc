#include "devices/vsock_connection.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "base/check.h"

namespace fvmm::devices {

VsockConnection VsockConnection::to_guest(VsockPorts ports, UniqueFd socket, SteadyTime now) {
  VsockConnection made(ports, std::move(socket), Phase::kAsking);
  made.owed_ = kRequest;
  made.deadline_ = now + kVsockAnswerWait;
  return made;
}

VsockConnection VsockConnection::from_guest(VsockPorts ports, UniqueFd socket, const VsockHeader& request) {
  VsockConnection made(ports, std::move(socket), Phase::kOpen);
  made.owed_ = kResponse;
  made.guest_room_ = request.buf_alloc;
  made.guest_forwarded_ = request.fwd_cnt;
  return made;
}

void VsockConnection::over(End how) {
  if (end_ == End::kNo) end_ = how;
}

bool VsockConnection::pay(Owed what) {
  const bool due = (owed_ & what) != 0;
  owed_ &= ~what;
  return due;
}

// A guest that claims to have forwarded more than it got has no room until it says something better.
std::uint32_t VsockConnection::credit() const {
  const std::uint32_t under_way = sent_ - guest_forwarded_;
  return under_way < guest_room_ ? guest_room_ - under_way : 0;
}

bool VsockConnection::may_read() const {
  return phase_ == Phase::kOpen && !read_ended_ && (guest_flags_ & kVsockNoReceive) == 0 && credit() > 0;
}

// ---- from the guest

void VsockConnection::receive(const VsockHeader& header, std::span<const std::byte> data, SteadyTime now) {
  guest_room_ = header.buf_alloc;
  guest_forwarded_ = header.fwd_cnt;
  if (credit() > 0) {
    credit_asked_ = false;
    (void)pay(kCreditRequest);
  }
  switch (header.op) {
    case VsockOp::kResponse:
      return phase_ == Phase::kAsking ? opened() : over(End::kReset);
    case VsockOp::kRst:
      over(End::kSilent);
      return flush(now);  // what the program takes at once
    case VsockOp::kShutdown:
      return guest_shuts_down(header.flags & kVsockNeither);
    case VsockOp::kRw:
      return take_data(data, now);
    case VsockOp::kCreditRequest:
      owed_ |= kCreditUpdate;
      return;
    case VsockOp::kCreditUpdate:
      return;
    case VsockOp::kRequest:
    case VsockOp::kInvalid:
      break;
  }
  over(End::kReset);
}

// The socket is empty: it takes a line, or the program is gone.
void VsockConnection::opened() {
  const std::string line = fmt::format("OK {}\n", ports_.host);
  const ssize_t sent = ::send(socket_.get(), line.data(), line.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent != static_cast<ssize_t>(line.size())) return over(End::kReset);
  phase_ = Phase::kOpen;
  deadline_.reset();
}

void VsockConnection::guest_shuts_down(std::uint32_t flags) {
  if (phase_ == Phase::kAsking) return over(End::kReset);
  guest_flags_ |= flags;
  if (phase_ == Phase::kOpen && (flags & kVsockNoReceive) != 0) (void)::shutdown(socket_.get(), SHUT_RD);
  finish_halves();
}

// Data that comes when the program is gone was sent before the guest could know.
void VsockConnection::take_data(std::span<const std::byte> data, SteadyTime now) {
  const bool refused = phase_ == Phase::kAsking || (guest_flags_ & kVsockNoSend) != 0;
  if (refused || data.size() > kVsockBufferBytes - waiting()) return over(End::kReset);
  received_ += static_cast<std::uint32_t>(data.size());
  if (phase_ == Phase::kClosing || (our_flags_ & kVsockNoReceive) != 0) {
    forwarded_ = received_;
    return update_credit();
  }
  std::size_t passed = 0;
  if (waiting() == 0 && !pass_on(data, passed)) return program_is_deaf(now);
  const auto rest = data.subspan(passed);
  waiting_.insert(waiting_.end(), rest.begin(), rest.end());
  update_credit();
}

// False: nobody takes it any more.
bool VsockConnection::pass_on(std::span<const std::byte> data, std::size_t& passed) {
  const ssize_t sent = ::send(socket_.get(), data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0) return errno == EAGAIN || errno == EINTR || errno == ENOBUFS;
  passed = static_cast<std::size_t>(sent);
  forwarded_ += static_cast<std::uint32_t>(sent);
  return true;
}

void VsockConnection::flush(SteadyTime now) {
  if (waiting() == 0) return;
  std::size_t passed = 0;
  if (!pass_on(std::span(waiting_).subspan(waiting_from_), passed)) return program_is_deaf(now);
  waiting_from_ += passed;
  if (waiting() == 0 || waiting_from_ >= kVsockBufferBytes / 2) {
    waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(waiting_from_));
    waiting_from_ = 0;
  }
  finish_halves();
  update_credit();
}

// What the guest has sent before its SHUTDOWN reaches the program first.
void VsockConnection::finish_halves() {
  if (waiting() != 0) return;
  if (guest_flags_ == kVsockNeither) return over(End::kReset);  // section 5.10.6.5: answers a clean disconnect
  if ((guest_flags_ & kVsockNoSend) == 0 || write_shut_ || phase_ != Phase::kOpen) return;
  (void)::shutdown(socket_.get(), SHUT_WR);
  write_shut_ = true;
}

// The guest is told before it believes less than half of its room to be left, but not of every byte.
void VsockConnection::update_credit() {
  if (forwarded_ != told_ && received_ - told_ > kVsockBufferBytes / 2) owed_ |= kCreditUpdate;
}

// ---- to the guest

bool VsockConnection::has_packet() const {
  return end_ == End::kNo && (owed_ != 0 || (readable_ && may_read()));
}

std::optional<VsockHeader> VsockConnection::next(std::span<std::byte> room, SteadyTime now) {
  VsockHeader header{.src_port = ports_.host, .dst_port = ports_.guest, .buf_alloc = kVsockBufferBytes};
  if (pay(kRequest)) {
    header.op = VsockOp::kRequest;
  } else if (pay(kResponse)) {
    header.op = VsockOp::kResponse;
  } else if (header.len = read_into(room, now); header.len > 0) {
    header.op = VsockOp::kRw;
  } else if (pay(kShutdown)) {
    header.op = VsockOp::kShutdown;
    header.flags = our_flags_;
  } else if (pay(kCreditRequest)) {
    header.op = VsockOp::kCreditRequest;
  } else if (pay(kCreditUpdate)) {
    header.op = VsockOp::kCreditUpdate;
  } else {
    return std::nullopt;
  }
  header.fwd_cnt = told_ = forwarded_;
  (void)pay(kCreditUpdate);  // every packet is one
  return header;
}

// A program that closes with something unread shows first as an error, and may have left data all the same.
std::uint32_t VsockConnection::read_into(std::span<std::byte> room, SteadyTime now) {
  if (!readable_ || !may_read()) return 0;
  const auto part = room.first(std::min<std::size_t>(room.size(), credit()));
  FVMM_CHECK(!part.empty(), "a packet of data has room for a byte");
  ssize_t got = ::recv(socket_.get(), part.data(), part.size(), MSG_DONTWAIT);
  if (got < 0 && errno == ECONNRESET) {
    program_is_deaf(now);
    got = ::recv(socket_.get(), part.data(), part.size(), MSG_DONTWAIT);
  }
  if (got > 0) {
    sent_ += static_cast<std::uint32_t>(got);
    if (credit() == 0 && !std::exchange(credit_asked_, true)) owed_ |= kCreditRequest;
    return static_cast<std::uint32_t>(got);
  }
  readable_ = false;
  if (got == 0 || (errno != EAGAIN && errno != EINTR)) end_of_data(now);
  return 0;
}

// ---- the program

pollfd VsockConnection::watch() const {
  short events = 0;
  if (may_read() && !readable_) events |= POLLIN;
  if (waiting() != 0) events |= POLLOUT;
  const bool nothing_new = events == 0 && hung_up_;
  return {.fd = nothing_new ? -1 : socket_.get(), .events = events, .revents = 0};
}

void VsockConnection::look(short events, SteadyTime now) {
  const bool gone = (events & (POLLHUP | POLLERR)) != 0;
  if (phase_ == Phase::kAsking) {
    if (gone) over((owed_ & kRequest) != 0 ? End::kSilent : End::kReset);
    return;
  }
  if ((events & POLLOUT) != 0) flush(now);
  if ((events & POLLIN) != 0) readable_ = true;
  if (!gone) return;
  hung_up_ = true;
  readable_ = true;  // at least its end
  program_is_deaf(now);
  if (!unread() || (guest_flags_ & kVsockNoReceive) != 0) end_of_data(now);
}

// Also where there is no credit to read with. The error of a program that left something unread is not the end.
bool VsockConnection::unread() const {
  std::byte one{};
  ssize_t got = ::recv(socket_.get(), &one, sizeof one, MSG_DONTWAIT | MSG_PEEK);
  if (got < 0 && errno == ECONNRESET) got = ::recv(socket_.get(), &one, sizeof one, MSG_DONTWAIT | MSG_PEEK);
  return got > 0;
}

void VsockConnection::end_of_data(SteadyTime now) {
  read_ended_ = true;
  shut_down(kVsockNoSend, now);
}

void VsockConnection::program_is_deaf(SteadyTime now) {
  waiting_.clear();
  waiting_from_ = 0;
  forwarded_ = received_;
  finish_halves();
  shut_down(kVsockNoReceive, now);
}

// Once both ways are shut, the guest's answer is all that is left to wait for.
void VsockConnection::shut_down(std::uint32_t flags, SteadyTime now) {
  if ((our_flags_ & flags) == flags) return;
  our_flags_ |= flags;
  owed_ |= kShutdown;
  if (our_flags_ != kVsockNeither) return;
  phase_ = Phase::kClosing;
  deadline_ = now + kVsockCloseWait;
  socket_.reset();
}

void VsockConnection::expire(SteadyTime now) {
  if (!deadline_ || now < *deadline_) return;
  over((owed_ & kRequest) != 0 ? End::kSilent : End::kReset);
}

void VsockConnection::postpone(std::chrono::nanoseconds by) {
  if (deadline_) *deadline_ += by;
}

}  // namespace fvmm::devices
