#include "daemon/systemd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

namespace fvmm::daemon {

namespace {
constexpr int kFirstPassedFd = 3;  // SD_LISTEN_FDS_START
}

Status notify_systemd(std::string_view state) {
  const char* path = std::getenv("NOTIFY_SOCKET");  // NOLINT(concurrency-mt-unsafe): nobody sets variables
  if (path == nullptr || path[0] == '\0') return {};
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t length = std::strlen(path);
  if (length >= sizeof(address.sun_path)) return Error(Errc::kInvalidArgument, "NOTIFY_SOCKET is too long");
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // the abstract namespace
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) return Error(Errc::kIo, "socket", errno);
  const auto address_bytes = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  const ssize_t sent = ::sendto(fd.get(), state.data(), state.size(), MSG_NOSIGNAL,
                                reinterpret_cast<const sockaddr*>(&address), address_bytes);
  if (sent < 0) return Error(Errc::kIo, fmt::format("notify {}", path), errno);
  return {};
}

Result<std::optional<UniqueFd>> take_systemd_listener() {
  const char* pid = std::getenv("LISTEN_PID");    // NOLINT(concurrency-mt-unsafe): no thread has started
  const char* count = std::getenv("LISTEN_FDS");  // NOLINT(concurrency-mt-unsafe)
  const bool ours = pid != nullptr && count != nullptr && std::string_view(pid) == std::to_string(::getpid());
  const std::string descriptors = ours ? count : "0";
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  if (descriptors == "0") return std::optional<UniqueFd>();
  if (descriptors != "1") {
    return Error(Errc::kInvalidArgument,
                 fmt::format("systemd passed {} sockets; fvmmd takes one, its control socket", descriptors));
  }
  if (::fcntl(kFirstPassedFd, F_SETFD, FD_CLOEXEC) != 0) return Error(Errc::kIo, "the passed socket", errno);
  return std::optional(UniqueFd(kFirstPassedFd));
}

}  // namespace fvmm::daemon
