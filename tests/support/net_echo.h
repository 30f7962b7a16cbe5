// A TCP connection to a server that sends back what it gets, and whether it does.
#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <fstream>
#include <future>
#include <sstream>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"

namespace fvmm::testing {

class TcpEcho {
 public:
  /// Tries for two minutes: a guest whose network has just come up may answer late.
  TcpEcho(const std::string& address, std::uint16_t port) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    (void)::inet_pton(AF_INET, address.c_str(), &to.sin_addr);
    const Deadline deadline = Deadline::after(std::chrono::minutes(2));
    while (!connected_ && !deadline.passed()) {
      socket_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      connected_ = ::connect(socket_.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0;
    }
  }
  [[nodiscard]] bool connected() const { return connected_; }

  /// Sends so many bytes, and gets the same ones back, a minute at most between two of them.
  bool echoes(std::size_t bytes) {
    constexpr std::size_t kAtOnce = 8192;
    std::vector<char> piece(kAtOnce);
    std::vector<char> back(kAtOnce);
    for (std::size_t at = 0; at < bytes; at += kAtOnce) {
      for (char& byte : piece) byte = static_cast<char>((count_++ * 131) >> 3);
      if (::send(socket_.get(), piece.data(), piece.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(piece.size()))
        return false;
      for (std::size_t got = 0; got < back.size();) {
        pollfd wanted{.fd = socket_.get(), .events = POLLIN, .revents = 0};
        if (::poll(&wanted, 1, 60'000) != 1) return false;
        const ssize_t more = ::recv(socket_.get(), back.data() + got, back.size() - got, 0);
        if (more <= 0) return false;
        got += static_cast<std::size_t>(more);
      }
      if (back != piece) return false;
    }
    return true;
  }
  /// The same on a thread, until finish().
  void start(std::size_t bytes) {
    running_ = std::async(std::launch::async, [this, bytes] { return echoes(bytes); });
  }
  bool finish() { return running_.get(); }

 private:
  UniqueFd socket_;
  bool connected_ = false;
  std::size_t count_ = 0;
  std::future<bool> running_;
};

/// The MAC address behind an IPv4 address that we have talked to; empty: not known.
inline std::string neighbour_of(const std::string& address) {
  std::ifstream table("/proc/thread-self/net/arp");
  std::string line;
  while (std::getline(table, line)) {
    std::istringstream words(line);
    std::string ip;
    std::string type;
    std::string flags;
    std::string mac;
    if (words >> ip >> type >> flags >> mac && ip == address) return mac;
  }
  return {};
}

}  // namespace fvmm::testing
