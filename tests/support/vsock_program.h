// Programs of a host that talk to a guest over vsock: sockets with somebody else at the other end.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "devices/bound_socket.h"

namespace fvmm::testing {

inline constexpr std::chrono::seconds kProgramWait{60};

/// A program's end of a connection.
class Program {
 public:
  Program() = default;
  explicit Program(UniqueFd socket) : socket_(std::move(socket)) {}
  /// Connects to a VM's socket, and says to whom; "" when nobody listens there.
  static Program calls(const std::filesystem::path& path, unsigned port) {
    auto socket = devices::connect_to_path(path);
    if (!socket) return {};
    Program program(std::move(*socket));
    program.send("CONNECT " + std::to_string(port) + "\n");
    return program;
  }

  void send(std::string_view text) const {
    while (!text.empty() && ready(POLLOUT, kProgramWait)) {
      const ssize_t sent = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno == EAGAIN) continue;
      if (sent < 0) break;
      text.remove_prefix(static_cast<std::size_t>(sent));
    }
    EXPECT_TRUE(text.empty()) << text.size() << " bytes not sent: " << std::strerror(errno);
  }
  /// Exactly so many bytes; fewer at the end of the stream, or when none come for long.
  [[nodiscard]] std::string receive(std::size_t bytes) const {
    std::string text(bytes, '\0');
    std::size_t got = 0;
    while (got < bytes && ready(POLLIN, kProgramWait)) {
      const ssize_t n = ::recv(socket_.get(), text.data() + got, bytes - got, MSG_DONTWAIT);
      if (n < 0 && errno == EAGAIN) continue;
      if (n <= 0) break;
      got += static_cast<std::size_t>(n);
    }
    text.resize(got);
    return text;
  }
  /// A line without its end; "" at the end of the stream.
  [[nodiscard]] std::string receive_line() const {
    std::string line;
    for (std::string one = receive(1); one != "\n"; one = receive(1)) {
      if (one.empty()) return line;
      line += one;
    }
    return line;
  }
  /// The guest has taken the connection.
  [[nodiscard]] bool taken() const { return receive_line().starts_with("OK "); }
  /// Nothing more comes, and nobody sends any more.
  [[nodiscard]] bool at_end() const {
    if (!ready(POLLIN, kProgramWait)) return false;
    char one = 0;
    const ssize_t got = ::recv(socket_.get(), &one, 1, MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno != EAGAIN);
  }
  /// There is something to receive now, if only the end.
  [[nodiscard]] bool readable() const { return ready(POLLIN, std::chrono::milliseconds(0)); }
  void shut_sending() const { EXPECT_EQ(::shutdown(socket_.get(), SHUT_WR), 0); }
  void close() { socket_.reset(); }
  [[nodiscard]] int fd() const { return socket_.get(); }

 private:
  [[nodiscard]] bool ready(short events, std::chrono::milliseconds wait) const {
    pollfd wanted{.fd = socket_.get(), .events = events, .revents = 0};
    return socket_ && ::poll(&wanted, 1, static_cast<int>(wait.count())) == 1;
  }
  UniqueFd socket_;
};

/// A program that guests connect to.
class Service {
 public:
  explicit Service(const std::filesystem::path& path) {
    auto bound = devices::BoundSocket::bind(path);
    EXPECT_TRUE(bound.ok() && bound->listen(4).ok()) << path;
    if (bound) socket_ = std::move(*bound);
  }
  /// The next guest that connects; a program without a connection when none comes.
  Program accept() {
    pollfd wanted{.fd = socket_.fd(), .events = POLLIN, .revents = 0};
    const auto wait = std::chrono::milliseconds(kProgramWait).count();
    if (!socket_ || ::poll(&wanted, 1, static_cast<int>(wait)) != 1) return {};
    auto accepted = socket_.accept();
    return accepted ? Program(std::move(*accepted)) : Program();
  }

 private:
  devices::BoundSocket socket_;
};

}  // namespace fvmm::testing
