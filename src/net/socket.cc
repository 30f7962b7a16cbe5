#include "net/socket.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>

#include "base/mailbox.h"

namespace fvmm::net {
namespace {

std::optional<SocketAddress> numeric_address(const std::string& host, std::uint16_t port) {
  SocketAddress address;
  auto& v4 = reinterpret_cast<sockaddr_in&>(address.storage);
  if (::inet_pton(AF_INET, host.c_str(), &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    address.bytes = sizeof v4;
    return address;
  }
  auto& v6 = reinterpret_cast<sockaddr_in6&>(address.storage);
  if (::inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) == 1) {
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    address.bytes = sizeof v6;
    return address;
  }
  return std::nullopt;
}

Result<std::vector<SocketAddress>> ask_resolver(const Endpoint& endpoint) {
  addrinfo hints{};
  hints.ai_flags = AI_ADDRCONFIG;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int result = ::getaddrinfo(endpoint.host.c_str(), nullptr, &hints, &list);
  if (result != 0) return Error(Errc::kNotFound, "resolve " + endpoint.host + ": " + ::gai_strerror(result));
  std::vector<SocketAddress> found;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    SocketAddress address;
    address.bytes = entry->ai_addrlen;
    std::memcpy(&address.storage, entry->ai_addr, entry->ai_addrlen);
    // sin_port and sin6_port share their place.
    reinterpret_cast<sockaddr_in&>(address.storage).sin_port = htons(endpoint.port);
    found.push_back(address);
  }
  ::freeaddrinfo(list);
  return found;
}

void set_buffer(int fd, int option, int lock) {
  if (::setsockopt(fd, SOL_SOCKET, option, &kSocketBufferBytes, sizeof kSocketBufferBytes) != 0) return;
  int actual = 0;
  socklen_t bytes = sizeof actual;
  if (::getsockopt(fd, SOL_SOCKET, option, &actual, &bytes) != 0 || actual >= kSocketBufferBytes) return;
  int locks = 0;  // the system's limit is lower: a fixed small buffer is worse than the kernel's own tuning
  bytes = sizeof locks;
  if (::getsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &locks, &bytes) != 0) return;
  locks &= ~lock;
  (void)::setsockopt(fd, SOL_SOCKET, SO_BUF_LOCK, &locks, sizeof locks);
}

Status set_option(int fd, int level, int option, int value, const char* name) {
  if (::setsockopt(fd, level, option, &value, sizeof value) != 0) return Error(Errc::kIo, name, errno);
  return {};
}

}  // namespace

Result<std::vector<SocketAddress>> resolve(const Endpoint& endpoint, const Deadline& deadline) {
  if (endpoint.host == "localhost") {  // always the loopback addresses, whatever a resolver says (RFC 6761, 6.3)
    return std::vector{*numeric_address("127.0.0.1", endpoint.port), *numeric_address("::1", endpoint.port)};
  }
  if (const auto address = numeric_address(endpoint.host, endpoint.port)) return std::vector{*address};
  using Answer = Result<std::vector<SocketAddress>>;
  const auto answers = std::make_shared<Mailbox<Answer>>(1);
  std::thread([answers, endpoint] { (void)answers->try_send(ask_resolver(endpoint)); }).detach();
  if (auto answer = answers->receive(deadline)) return std::move(*answer);
  return Error(Errc::kDeadlineExceeded, "resolve " + endpoint.host + ": no answer in time");
}

Endpoint to_endpoint(const SocketAddress& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.storage.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address.storage);
    ::inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
    return {.host = text.data(), .port = ntohs(v4.sin_port)};
  }
  if (address.storage.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address.storage);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
    return {.host = text.data(), .port = ntohs(v6.sin6_port)};
  }
  return {.host = address.storage.ss_family == AF_UNIX ? "unix" : "unknown", .port = 0};
}

void set_buffers(int fd) {
  constexpr int kSendLock = 1;  // SOCK_SNDBUF_LOCK and SOCK_RCVBUF_LOCK, linux/socket.h
  constexpr int kReceiveLock = 2;
  set_buffer(fd, SO_SNDBUF, kSendLock);
  set_buffer(fd, SO_RCVBUF, kReceiveLock);
}

Status set_tcp_options(int fd) {
  int domain = 0;
  socklen_t bytes = sizeof domain;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0) return Error(Errc::kIo, "SO_DOMAIN", errno);
  if (domain != AF_INET && domain != AF_INET6) return {};
  const auto interval_s = static_cast<int>(kKeepaliveInterval.count());
  const auto silence_ms = static_cast<int>(kPeerSilenceMax.count());
  FVMM_TRY(set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"));
  FVMM_TRY(set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, silence_ms, "TCP_USER_TIMEOUT"));
  FVMM_TRY(set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"));
  FVMM_TRY(set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, interval_s, "TCP_KEEPIDLE"));
  FVMM_TRY(set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, interval_s, "TCP_KEEPINTVL"));
  return set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbesMax, "TCP_KEEPCNT");
}

Error socket_error(std::string what, int sys_errno) {
  switch (sys_errno) {
    case ECONNRESET:
    case ECONNREFUSED:
    case ECONNABORTED:
    case EPIPE:
    case ETIMEDOUT:
    case ENOTCONN:
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ENETUNREACH:
    case ENETDOWN:
    case ENETRESET:
      return {Errc::kUnavailable, std::move(what), sys_errno};
    default:
      return {Errc::kIo, std::move(what), sys_errno};
  }
}

Result<bool> poll_until(int fd, short events, const Deadline& deadline) {
  while (true) {
    const auto left = deadline.left();
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec timeout{.tv_sec = seconds.count(), .tv_nsec = (left - seconds).count()};
    pollfd wanted{.fd = fd, .events = events, .revents = 0};
    const int result = ::ppoll(&wanted, 1, &timeout, nullptr);
    if (result > 0) return true;
    if (result == 0) return false;
    if (errno != EINTR) return Error(Errc::kIo, "ppoll", errno);
  }
}

}  // namespace fvmm::net
