// TCP connections on io_uring, and the listener.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"
#include "net/stream.h"

namespace fvmm::net {

struct Endpoint {
  std::string host;  // IPv4, "[v6]" without brackets, or a name
  std::uint16_t port = 0;
  static Result<Endpoint> parse(
      std::string_view text);  // "127.0.0.1:7000", "[::1]:7000"; kInvalidArgument names the text
  [[nodiscard]] std::string text() const;
  [[nodiscard]] bool loopback() const;  // 127/8, ::1, "localhost"
};

/// One connection with its own small io_uring. Guest RAM passes through as plain iovecs, never registered.
/// A socket that was accepted by fvmmd and passed with SCM_RIGHTS is adopted the same way.
///
/// In flight: at most one sendmsg and one recvmsg of at most kIovecsMax parts each. The kernel continues a short send
/// by itself; the next 1,024 parts of a longer array go out in the owner's next call. A channel may be handed to
/// another thread while nothing is in flight. Ending: an error, cancel() and the destructor shut the socket down
/// (shutdown(2)) and give no memory back before the kernel has let go of it. A send that was started and never finished
/// is dropped by the destructor. cancel() is a flag, then shutdown(2), both before the owner can close the descriptor
/// (a mutex): an operation that starts after the flag sees it, one that started before is woken by the shutdown, so
/// none is missed. The peer sees the connection close.
class Channel final : public Stream {
 public:
  /// Sets TCP_NODELAY, TCP_USER_TIMEOUT and keepalive, makes the descriptor blocking and close-on-exec, and makes the
  /// ring. Buffers stay as they are: connect() and Listener set them, before the window's ceiling is fixed. Any
  /// connected stream socket will do. Errors: kInvalidArgument for anything else, kUnavailable when not connected (any
  /// more) or without io_uring, kIo.
  static Result<std::unique_ptr<Channel>> adopt(UniqueFd socket);
  /// Connects and adopts. Errors: kUnavailable, kNotFound (the name), kDeadlineExceeded; they name the endpoint.
  static Result<std::unique_ptr<Channel>> connect(const Endpoint& to, const Deadline& deadline);
  ~Channel() override;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  Channel(Channel&&) = delete;
  Channel& operator=(Channel&&) = delete;
  Status start_send(std::span<const iovec> parts, const Deadline& deadline) override;
  Status finish_send(const Deadline& deadline) override;
  Status receive(std::span<const iovec> parts, const Deadline& deadline) override;
  using Stream::receive;
  [[nodiscard]] bool closed_by_peer() const override;
  void cancel() override;
  [[nodiscard]] int fd() const;
  /// The socket; the channel is dead after. Checked: nothing in flight, no send unfinished.
  UniqueFd release() &&;

 private:
  struct State;
  explicit Channel(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Listens on a TCP endpoint. kInvalidArgument for an address that is not loopback, until peers are authenticated.
/// Owner and thread: one.
class Listener {
 public:
  /// Errors: kInvalidArgument (not loopback), kAlreadyExists (in use), kPermissionDenied, kIo; they name the endpoint.
  static Result<Listener> open(const Endpoint& at);
  /// A blocking, close-on-exec socket for Channel::adopt. kDeadlineExceeded when nobody came, kResourceExhausted when
  /// out of descriptors or memory (the connection keeps waiting), kIo.
  Result<UniqueFd> accept(const Deadline& deadline);
  [[nodiscard]] Endpoint bound() const;  // with the port that port 0 became
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  Listener(UniqueFd fd, Endpoint bound) : fd_(std::move(fd)), bound_(std::move(bound)) {}
  UniqueFd fd_;
  Endpoint bound_;
};

}  // namespace fvmm::net
