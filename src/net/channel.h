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
  static Result<Endpoint> parse(std::string_view text);  // "127.0.0.1:7000", "[::1]:7000"; kInvalidArgument names the text
  [[nodiscard]] std::string text() const;
  [[nodiscard]] bool loopback() const;                    // 127/8, ::1, "localhost"
};

/// One connection with its own small io_uring. Guest RAM passes through as plain iovecs, never registered.
/// A socket that was accepted by fvmmd and passed with SCM_RIGHTS is adopted the same way.
class Channel final : public Stream {
 public:
  static Result<std::unique_ptr<Channel>> adopt(UniqueFd socket);  // sets TCP_NODELAY and buffer sizes; makes the ring
  static Result<std::unique_ptr<Channel>> connect(const Endpoint& to, const Deadline& deadline);
  ~Channel() override;
  Status start_send(std::span<const iovec> parts, const Deadline& deadline) override;
  Status finish_send(const Deadline& deadline) override;
  Status receive(std::span<const iovec> parts, const Deadline& deadline) override;
  using Stream::receive;
  void cancel() override;
  [[nodiscard]] int fd() const;
  UniqueFd release() &&;  // the socket, with nothing in flight; the channel is dead after

 private:
  struct State;
  explicit Channel(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Listens on a TCP endpoint. kInvalidArgument for an address that is not loopback, until peers are authenticated.
class Listener {
 public:
  static Result<Listener> open(const Endpoint& at);
  Result<UniqueFd> accept(const Deadline& deadline);  // kDeadlineExceeded when nobody came
  [[nodiscard]] Endpoint bound() const;               // with the port that port 0 became
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  Listener(UniqueFd fd, Endpoint bound) : fd_(std::move(fd)), bound_(std::move(bound)) {}
  UniqueFd fd_;
  Endpoint bound_;
};

}  // namespace fvmm::net
