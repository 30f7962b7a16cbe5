// TCP sockets before io_uring takes over: options, addresses, what an errno means. Internal to src/net.
#pragma once

#include <sys/socket.h>

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "net/channel.h"

namespace fvmm::net {

/// Wanted size of each kernel socket buffer. docs/wire-protocol.md has the measurement.
inline constexpr int kSocketBufferBytes = 4 * 1024 * 1024;
/// A peer that acknowledges nothing, or keeps its window shut, for this long is dead (TCP_USER_TIMEOUT, tcp(7)).
inline constexpr std::chrono::milliseconds kPeerSilenceMax{30'000};
/// An idle connection is probed after this long, then at the same interval; 5 unanswered probes end it.
inline constexpr std::chrono::seconds kKeepaliveInterval{5};
inline constexpr int kKeepaliveProbesMax = 5;

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

/// The numeric addresses of an endpoint, in order of preference. Names other than "localhost" are asked of the
/// resolver, on a thread of its own because getaddrinfo(3) knows no deadline. Errors: kNotFound, kDeadlineExceeded.
Result<std::vector<SocketAddress>> resolve(const Endpoint& endpoint, const Deadline& deadline);

/// The endpoint of an address as the kernel reports it; "unix" and such have the family's name as host and port 0.
Endpoint to_endpoint(const SocketAddress& address);

/// Sets both buffers; call before connect or listen, because the receive window's ceiling is fixed there (tcp(7)).
/// Where the system's limit is lower, the kernel's own tuning stays on, which may go higher.
void set_buffers(int fd);
/// TCP_NODELAY, TCP_USER_TIMEOUT and keepalive; nothing on other kinds of sockets. Errors: kIo.
Status set_tcp_options(int fd);

/// kUnavailable for what a lost connection gives, kIo for the rest; `what` is what was tried.
Error socket_error(std::string what, int sys_errno);

/// Waits for poll(2) events on one descriptor. False at the deadline. Errors: kIo.
Result<bool> poll_until(int fd, short events, const Deadline& deadline);

}  // namespace fvmm::net
