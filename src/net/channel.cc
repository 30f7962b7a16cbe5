#include "net/channel.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <mutex>
#include <optional>

#include "base/ring.h"
#include "net/iovec_cursor.h"
#include "net/socket.h"

namespace fvmm::net {
namespace {

constexpr unsigned kRingEntries = 8;  // a send, a receive and a cancel; never more
constexpr std::uint64_t kSendDone = 1;
constexpr std::uint64_t kReceiveDone = 2;
constexpr std::uint64_t kCancelDone = 3;
// The kernel answers a cancel at once; past this, memory it may still write to cannot be given back.
constexpr std::chrono::seconds kLetGoMax{30};

/// One direction: what is left to transfer, and whether the kernel has a request for it.
struct Transfer {
  IovecCursor parts;
  msghdr message{};  // stays in place while in flight
  bool in_flight = false;
  std::optional<Error> failed;  // of a request that completed while the owner waited for something else
};

}  // namespace

struct Channel::State {
  Status usable();
  Status broken(Error error);
  void queue_send();
  void queue_receive();
  void receive_at_once();
  void handle(std::uint64_t request, int result);
  Status wait(const char* what, const Transfer& transfer, const Deadline& deadline);
  void let_go();
  std::string at(const char* what) const { return std::string(what) + " " + peer; }

  std::string peer;  // for messages
  std::unique_ptr<Ring> ring;
  Transfer sending;
  Transfer receiving;
  bool end_of_stream = false;
  std::optional<std::string> broken_by;  // the first error; the stream is dead since
  std::atomic<bool> cancelled = false;
  std::mutex socket_mutex;  // between cancel() and release(): neither may meet the other's half-done work
  UniqueFd socket;          // written under socket_mutex; the owner reads it without
};

/// Whether a call may start at all.
Status Channel::State::usable() {
  if (cancelled) return Error(Errc::kCancelled, at("connection") + ": cancelled");
  if (broken_by) return Error(Errc::kUnavailable, at("connection") + ": broken before by: " + *broken_by);
  return {};
}

/// Ends the stream: the kernel lets go of all memory, and every later call fails. A cancel explains any other error.
Status Channel::State::broken(Error error) {
  let_go();
  if (!broken_by) broken_by = error.message();
  if (cancelled) return Error(Errc::kCancelled, at("connection") + ": cancelled");
  return error;
}

void Channel::State::queue_send() {
  const std::span<iovec> window = sending.parts.window();
  sending.message.msg_iov = window.data();
  sending.message.msg_iovlen = window.size();
  io_uring_sqe& sqe = ring->next();
  // MSG_WAITALL only spares wake-ups: the kernel goes on by itself after a short send. What comes back short is
  // resumed.
  io_uring_prep_sendmsg(&sqe, socket.get(), &sending.message, MSG_NOSIGNAL | MSG_WAITALL);
  io_uring_sqe_set_data64(&sqe, kSendDone);
  sending.in_flight = true;
}

void Channel::State::queue_receive() {
  const std::span<iovec> window = receiving.parts.window();
  receiving.message.msg_iov = window.data();
  receiving.message.msg_iovlen = window.size();
  io_uring_sqe& sqe = ring->next();
  io_uring_prep_recvmsg(&sqe, socket.get(), &receiving.message, MSG_WAITALL);
  io_uring_sqe_set_data64(&sqe, kReceiveDone);
  receiving.in_flight = true;
}

/// Takes what has already arrived, without the ring: a microsecond or two less for a small message.
void Channel::State::receive_at_once() {
  const std::span<iovec> window = receiving.parts.window();
  msghdr message{};
  message.msg_iov = window.data();
  message.msg_iovlen = window.size();
  const ssize_t got = ::recvmsg(socket.get(), &message, MSG_DONTWAIT);
  if (got >= 0) {
    handle(kReceiveDone, static_cast<int>(got));
  } else if (errno != EAGAIN) {
    handle(kReceiveDone, -errno);
  }
}

/// Takes in one completion. A short transfer is only noted: its owner queues the rest.
void Channel::State::handle(std::uint64_t request, int result) {
  if (request == kCancelDone) return;
  Transfer& transfer = request == kSendDone ? sending : receiving;
  transfer.in_flight = false;
  if (result > 0) {
    transfer.parts.advance(static_cast<std::uint64_t>(result));
  } else if (result == 0 && request == kReceiveDone) {
    end_of_stream = true;
  } else if (result != -EINTR) {
    transfer.failed = socket_error(at(request == kSendDone ? "send to" : "receive from"), -result);
  }
}

/// Submits what is queued, waits until something completes, and takes in all of it.
Status Channel::State::wait(const char* what, const Transfer& transfer, const Deadline& deadline) {
  FVMM_TRY(ring->wait(deadline), at(what));
  ring->reap([this](std::uint64_t request, int result) { handle(request, result); });
  if (cancelled) return Error(Errc::kCancelled, at("connection") + ": cancelled");
  if (!transfer.parts.done() && deadline.passed()) {
    let_go();  // a request taken back reports how far it came
    return Error(Errc::kDeadlineExceeded, at(what) + ": " + std::to_string(transfer.parts.moved()) + " of " +
                                              std::to_string(transfer.parts.total()) + " bytes at the deadline");
  }
  return {};
}

/// Takes every request back from the kernel. Shutdown wakes what waits for the socket, cancel what does not.
void Channel::State::let_go() {
  if (socket) (void)::shutdown(socket.get(), SHUT_RDWR);
  if (!sending.in_flight && !receiving.in_flight) return;
  io_uring_sqe& sqe = ring->next();
  io_uring_prep_cancel64(&sqe, 0, IORING_ASYNC_CANCEL_ANY);
  io_uring_sqe_set_data64(&sqe, kCancelDone);
  const Deadline deadline = Deadline::after(kLetGoMax);
  while (sending.in_flight || receiving.in_flight) {
    (void)ring->wait(deadline);
    ring->reap([this](std::uint64_t request, int result) { handle(request, result); });
    FVMM_CHECK(!deadline.passed(), "the kernel still holds memory of a connection that was cancelled");
  }
}

Channel::Channel(std::unique_ptr<State> state) : state_(std::move(state)) {}

Channel::~Channel() {
  if (state_->socket) state_->let_go();
}

Result<std::unique_ptr<Channel>> Channel::adopt(UniqueFd socket) {
  SocketAddress peer;
  peer.bytes = sizeof peer.storage;
  if (::getpeername(socket.get(), reinterpret_cast<sockaddr*>(&peer.storage), &peer.bytes) != 0) {
    if (errno == ENOTCONN) return Error(Errc::kUnavailable, "adopt: not connected, or no more");
    return Error(Errc::kInvalidArgument, "adopt: not a socket", errno);
  }
  int type = 0;
  socklen_t type_bytes = sizeof type;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_TYPE, &type, &type_bytes) != 0 || type != SOCK_STREAM) {
    return Error(Errc::kInvalidArgument, "adopt: not a stream socket");
  }
  auto state = std::make_unique<State>();
  state->peer = to_endpoint(peer).text();
  // On a descriptor with O_NONBLOCK io_uring reports EAGAIN instead of waiting.
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags & ~O_NONBLOCK) != 0 ||
      ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC) != 0) {
    return Error(Errc::kIo, state->at("fcntl"), errno);
  }
  FVMM_TRY(set_tcp_options(socket.get()), state->at("connection"));
  state->ring = FVMM_TRY(Ring::make(kRingEntries), state->at("connection"));
  state->socket = std::move(socket);
  return std::unique_ptr<Channel>(new Channel(std::move(state)));
}

Status Channel::start_send(std::span<const iovec> parts, const Deadline& deadline) {
  FVMM_TRY(finish_send(deadline));
  State& s = *state_;
  s.sending.parts.assign(parts);
  // Each window that the socket takes at once completes inside submit(), and the next follows.
  while (!s.sending.parts.done() && !s.sending.in_flight) {
    s.queue_send();
    if (auto submitted = s.ring->submit(); !submitted.ok()) return s.broken(std::move(submitted.error()));
    s.ring->reap([&s](std::uint64_t request, int result) { s.handle(request, result); });
    if (s.sending.failed) return s.broken(*s.sending.failed);
  }
  return {};
}

Status Channel::finish_send(const Deadline& deadline) {
  State& s = *state_;
  FVMM_TRY(s.usable());
  s.ring->reap([&s](std::uint64_t request, int result) { s.handle(request, result); });
  while (!s.sending.parts.done()) {
    if (s.sending.failed) return s.broken(*s.sending.failed);
    if (!s.sending.in_flight) s.queue_send();
    if (auto waited = s.wait("send to", s.sending, deadline); !waited.ok()) return s.broken(std::move(waited.error()));
  }
  return {};
}

Status Channel::receive(std::span<const iovec> parts, const Deadline& deadline) {
  State& s = *state_;
  FVMM_TRY(s.usable());
  s.receiving.parts.assign(parts);
  if (!s.receiving.parts.done()) s.receive_at_once();
  while (!s.receiving.parts.done()) {
    if (s.receiving.failed) return s.broken(*s.receiving.failed);
    if (s.end_of_stream) {
      return s.broken(Error(Errc::kUnavailable, s.at("receive from") + ": closed by peer after " +
                                                    std::to_string(s.receiving.parts.moved()) + " of " +
                                                    std::to_string(s.receiving.parts.total()) + " bytes"));
    }
    if (!s.receiving.in_flight) s.queue_receive();
    // The rest of a send that came back short goes on while we wait; its failure is the next send's to report.
    if (!s.sending.parts.done() && !s.sending.in_flight && !s.sending.failed) s.queue_send();
    if (auto waited = s.wait("receive from", s.receiving, deadline); !waited.ok()) {
      return s.broken(std::move(waited.error()));
    }
  }
  return {};
}

bool Channel::closed_by_peer() const {
  pollfd item{.fd = state_->socket.get(), .events = POLLRDHUP, .revents = 0};
  return ::poll(&item, 1, 0) > 0;  // POLLRDHUP, POLLHUP or POLLERR
}

void Channel::cancel() {
  State& s = *state_;
  const std::lock_guard lock(s.socket_mutex);
  s.cancelled = true;
  if (s.socket) (void)::shutdown(s.socket.get(), SHUT_RDWR);
}

int Channel::fd() const {
  return state_->socket.get();
}

UniqueFd Channel::release() && {
  State& s = *state_;
  FVMM_CHECK(s.sending.parts.done() && !s.sending.in_flight && !s.receiving.in_flight,
             "release with a send unfinished");
  const std::lock_guard lock(s.socket_mutex);
  s.broken_by = "released";
  return std::move(s.socket);
}

}  // namespace fvmm::net
