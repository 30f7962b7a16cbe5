#include <poll.h>

#include <cerrno>
#include <cstring>

#include "net/channel.h"
#include "net/socket.h"

namespace fvmm::net {
namespace {

constexpr int kBacklog = 128;  // connections not yet accepted; one migration opens a handful
// listen() never asks a resolver: what is loopback is numeric or "localhost". The deadline is a formality.
constexpr std::chrono::seconds kResolveWait{1};

Error listen_error(const Endpoint& at, const char* call, int sys_errno) {
  const std::string where = "listen " + at.text() + ": ";
  if (sys_errno == EADDRINUSE) {
    return {Errc::kAlreadyExists, where + std::strerror(sys_errno) + "; is another fvmmd running?"};
  }
  const Errc code = sys_errno == EACCES ? Errc::kPermissionDenied : Errc::kIo;
  return {code, where + call, sys_errno};
}

}  // namespace

Result<Listener> Listener::open(const Endpoint& at) {
  if (!at.loopback()) {
    return Error(Errc::kInvalidArgument,
                 "listen " + at.text() +
                     ": only loopback addresses (127.0.0.0/8, [::1], localhost): a peer may hand over VMs and read "
                     "guest memory, and peers are not authenticated yet; mutual TLS between peers will allow others");
  }
  const auto addresses = FVMM_TRY(resolve(at, Deadline::after(kResolveWait)), "listen " + at.text());
  const SocketAddress& address = addresses.front();
  UniqueFd fd(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return listen_error(at, "socket", errno);
  const int on = 1;  // a restarted daemon takes its port back from connections in TIME_WAIT
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0) return listen_error(at, "option", errno);
  set_buffers(fd.get());  // accepted sockets inherit them
  if (::bind(fd.get(), address.get(), address.bytes) != 0) return listen_error(at, "bind", errno);
  if (::listen(fd.get(), kBacklog) != 0) return listen_error(at, "listen", errno);
  SocketAddress bound;
  bound.bytes = sizeof bound.storage;
  if (::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound.storage), &bound.bytes) != 0) {
    return listen_error(at, "getsockname", errno);
  }
  return Listener(std::move(fd), to_endpoint(bound));
}

Result<UniqueFd> Listener::accept(const Deadline& deadline) {
  const std::string where = "accept at " + bound_.text();
  while (true) {
    UniqueFd socket(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket) return socket;
    switch (errno) {
      case EAGAIN:  // nobody there, or gone again since poll
      case EINTR:
      case ECONNABORTED:
        break;
      case EMFILE:
      case ENFILE:
      case ENOBUFS:
      case ENOMEM:
        return Error(Errc::kResourceExhausted, where, errno);
      default:
        return Error(Errc::kIo, where, errno);
    }
    if (!FVMM_TRY(poll_until(fd_.get(), POLLIN, deadline), where)) {
      return Error(Errc::kDeadlineExceeded, where + ": nobody came");
    }
  }
}

Endpoint Listener::bound() const {
  return bound_;
}

}  // namespace fvmm::net
