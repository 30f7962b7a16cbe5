#include "devices/bound_socket.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace fvmm::devices {
namespace {

constexpr mode_t kSocketMode = 0660;

Result<sockaddr_un> address_of(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string& name = path.native();
  if (name.empty() || name.size() >= sizeof(address.sun_path)) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("{} bytes long, a socket's path has 1 to {}", name.size(), sizeof(address.sun_path) - 1));
  }
  std::memcpy(address.sun_path, name.data(), name.size());
  return address;
}

Result<UniqueFd> new_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return Error(Errc::kIo, "socket", errno);
  return fd;
}

}  // namespace

Result<UniqueFd> connect_to_path(const std::filesystem::path& path) {
  const sockaddr_un address = FVMM_TRY(address_of(path));
  UniqueFd fd = FVMM_TRY(new_socket());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
  const bool nobody = errno == ECONNREFUSED || errno == ENOENT;
  return Error(nobody || errno == EAGAIN ? Errc::kUnavailable : Errc::kIo, "connect", errno);  // EAGAIN: backlog full
}

Status remove_dead_socket(const std::filesystem::path& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) return {};  // nothing there; anything else shows in bind()
  if (!S_ISSOCK(info.st_mode)) return Error(Errc::kAlreadyExists, "is there and is not a socket");
  const auto probe = connect_to_path(path);
  if (probe || probe.error().sys_errno() == EAGAIN) {
    return Error(Errc::kAlreadyExists, "is there, and somebody listens: end that, or choose another path");
  }
  if (probe.error().code() != Errc::kUnavailable) return probe.error();
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return Error(Errc::kIo, "unlink", errno);
  return {};
}

Result<BoundSocket> BoundSocket::bind(std::filesystem::path path) {
  const sockaddr_un address = FVMM_TRY(address_of(path));
  FVMM_TRY(remove_dead_socket(path));
  UniqueFd socket = FVMM_TRY(new_socket());
  // Before bind: the file is never there with wider permissions, whatever the umask. After it: nor with narrower ones.
  if (::fchmod(socket.get(), kSocketMode) != 0) return Error(Errc::kIo, "fchmod", errno);
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return Error(Errc::kIo, "bind", errno);
  }
  struct stat info {};
  const bool known = ::lstat(path.c_str(), &info) == 0;
  if (!known || ::chmod(path.c_str(), kSocketMode) != 0) {
    const int error = errno;
    ::unlink(path.c_str());
    return Error(Errc::kIo, "chmod", error);
  }
  BoundSocket bound;
  bound.path_ = std::move(path);
  bound.socket_ = std::move(socket);
  bound.device_ = info.st_dev;
  bound.inode_ = info.st_ino;
  return bound;
}

BoundSocket& BoundSocket::operator=(BoundSocket&& other) noexcept {
  if (this == &other) return *this;
  close();
  path_ = std::move(other.path_);
  socket_ = std::move(other.socket_);
  device_ = other.device_;
  inode_ = other.inode_;
  return *this;
}

bool BoundSocket::named() const {
  struct stat info {};
  return ::lstat(path_.c_str(), &info) == 0 && info.st_dev == device_ && info.st_ino == inode_;
}

Status BoundSocket::listen(int backlog) {
  if (!named()) return Error(Errc::kAborted, "somebody else has this path by now");
  if (::listen(socket_.get(), backlog) != 0) return Error(Errc::kIo, "listen", errno);
  return {};
}

Result<UniqueFd> BoundSocket::accept() {
  UniqueFd accepted(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!accepted && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
    return Error(Errc::kResourceExhausted, "accept", errno);
  }
  return accepted;
}

void BoundSocket::close() {
  if (!socket_) return;
  if (named()) ::unlink(path_.c_str());
  socket_.reset();
}

}  // namespace fvmm::devices
