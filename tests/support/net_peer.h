// The other end of a network over a unix stream socket: listens, and sends and receives frames behind their lengths.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/unique_fd.h"

namespace fvmm::testing {

/// One VM at a time; who connects next takes its place.
class NetPeer {
 public:
  explicit NetPeer(std::string path) : path_(std::move(path)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    FVMM_CHECK(path_.size() < sizeof address.sun_path, "a short path");
    std::memcpy(address.sun_path, path_.data(), path_.size());
    const bool listens = ::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
                         ::listen(listener_.get(), 4) == 0;
    FVMM_CHECK(listens, "a socket of a test");
  }
  ~NetPeer() { (void)::unlink(path_.c_str()); }
  NetPeer(const NetPeer&) = delete;
  NetPeer& operator=(const NetPeer&) = delete;
  NetPeer(NetPeer&&) = delete;
  NetPeer& operator=(NetPeer&&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

  /// The next connection; false when none comes.
  bool accept() {
    if (!readable(listener_.get())) return false;
    connection_.reset(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    return connection_.get() >= 0;
  }
  bool send(std::span<const std::byte> frame) {
    std::vector<std::byte> bytes{std::byte{0}, std::byte{0}, static_cast<std::byte>(frame.size() >> 8),
                                 static_cast<std::byte>(frame.size())};
    bytes.insert(bytes.end(), frame.begin(), frame.end());
    return ::send(connection_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
  }
  /// The next frame; nothing at the deadline, or when the VM has hung up.
  std::optional<std::vector<std::byte>> receive() {
    std::vector<std::byte> prefix(4);
    if (!fill(prefix)) return std::nullopt;
    std::size_t bytes = 0;
    for (const std::byte byte : prefix) bytes = bytes << 8 | std::to_integer<std::size_t>(byte);
    std::vector<std::byte> frame(bytes);
    if (!fill(frame)) return std::nullopt;
    return frame;
  }

 private:
  static bool readable(int fd) {
    pollfd wanted{.fd = fd, .events = POLLIN, .revents = 0};
    return ::poll(&wanted, 1, 60'000) == 1;
  }
  bool fill(std::span<std::byte> out) const {
    while (!out.empty()) {
      if (!readable(connection_.get())) return false;
      const ssize_t got = ::recv(connection_.get(), out.data(), out.size(), 0);
      if (got <= 0) return false;
      out = out.subspan(static_cast<std::size_t>(got));
    }
    return true;
  }

  const std::string path_;
  UniqueFd listener_{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  UniqueFd connection_;
};

/// A frame that echo.elf sends back, of `bytes`, told from others by its number.
inline std::vector<std::byte> echo_frame(std::size_t bytes, unsigned number) {
  std::vector<std::byte> frame(bytes);
  for (std::size_t i = 0; i < bytes; ++i) frame[i] = static_cast<std::byte>((i * 31 + number * 7) % 253);
  for (std::size_t i = 0; i < 6; ++i) {
    frame[i] = std::byte{0xff};                        // to everybody
    frame[6 + i] = static_cast<std::byte>(2 + 2 * i);  // from us
  }
  frame[12] = std::byte{0x88};
  frame[13] = std::byte{0xb5};
  return frame;
}

/// Sends frames of many sizes, some at once, until each has come back as it was.
inline ::testing::AssertionResult echoes(NetPeer& peer, unsigned frames, unsigned at_once = 16) {
  const auto bytes_of = [](unsigned number) { return 60 + (number * 97) % 1455; };
  unsigned sent = 0;
  for (unsigned got = 0; got < frames; ++got) {
    for (; sent < frames && sent - got < at_once; ++sent) {
      if (!peer.send(echo_frame(bytes_of(sent), sent))) return ::testing::AssertionFailure() << "not sent: " << sent;
    }
    const auto frame = peer.receive();
    if (!frame) return ::testing::AssertionFailure() << "no answer to frame " << got << " of " << frames;
    const auto expected = echo_frame(bytes_of(got), got);
    const bool same = frame->size() == expected.size() &&
                      std::equal(frame->begin() + 12, frame->end(), expected.begin() + 12) &&
                      std::equal(frame->begin(), frame->begin() + 6, expected.begin() + 6);
    if (!same) return ::testing::AssertionFailure() << "frame " << got << " came back as another";
  }
  return ::testing::AssertionSuccess();
}

}  // namespace fvmm::testing
