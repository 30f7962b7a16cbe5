#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "net/channel.h"
#include "net/socket.h"

namespace fvmm::net {
namespace {

Error connect_error(const Endpoint& to, int sys_errno) {
  const std::string what = "connect " + to.text();
  if (sys_errno == ECONNREFUSED) {
    return {Errc::kUnavailable, what + ": " + std::strerror(sys_errno) + "; is fvmmd listening there?"};
  }
  return socket_error(what, sys_errno);
}

Result<UniqueFd> connect_one(const SocketAddress& address, const Endpoint& to, const Deadline& deadline) {
  UniqueFd fd(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return connect_error(to, errno);
  set_buffers(fd.get());
  if (::connect(fd.get(), address.get(), address.bytes) == 0) return fd;
  if (errno != EINPROGRESS && errno != EINTR) return connect_error(to, errno);
  if (!FVMM_TRY(poll_until(fd.get(), POLLOUT, deadline), "connect " + to.text())) {
    return Error(Errc::kDeadlineExceeded, "connect " + to.text() + ": no answer in time");
  }
  int failed = 0;
  socklen_t bytes = sizeof failed;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failed, &bytes) != 0) return connect_error(to, errno);
  if (failed != 0) return connect_error(to, failed);
  return fd;
}

}  // namespace

Result<std::unique_ptr<Channel>> Channel::connect(const Endpoint& to, const Deadline& deadline) {
  const auto addresses = FVMM_TRY(resolve(to, deadline), "connect " + to.text());
  Result<UniqueFd> socket = Error(Errc::kNotFound, "connect " + to.text() + ": the name has no address");
  for (const SocketAddress& address : addresses) {
    auto attempt = connect_one(address, to, deadline);
    if (attempt.ok()) return adopt(std::move(*attempt));
    if (&address == &addresses.front()) socket = std::move(attempt);  // the preferred address explains best
  }
  return std::move(socket.error());
}

}  // namespace fvmm::net
