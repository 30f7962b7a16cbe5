#include "control/unix_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "base/file.h"

namespace fvmm::control {
namespace {

constexpr int kBacklog = 64;
constexpr std::chrono::milliseconds kLockWaitMax{5000};  // another process binding in the same directory takes far less
constexpr int kGroupsMax = 65536;                        // NGROUPS_MAX of Linux
constexpr mode_t kSocketMode = 0660;

struct Address {
  sockaddr_un name{};
  socklen_t bytes = sizeof(sockaddr_un);
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&name); }
};

Result<Address> to_address(const std::filesystem::path& path) {
  const std::string& text = path.native();
  Address address;
  if (text.empty() || text.size() >= sizeof(address.name.sun_path)) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("socket path \"{}\" must have 1 to {} bytes", text, sizeof(address.name.sun_path) - 1));
  }
  address.name.sun_family = AF_UNIX;
  std::memcpy(address.name.sun_path, text.data(), text.size());
  return address;
}

Result<UniqueFd> new_socket(int extra_flags) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | extra_flags, 0));
  if (!fd) return Error(Errc::kIo, "socket(AF_UNIX)", errno);
  return fd;
}

/// The directory, exclusively locked: bind and listen are two steps, and a file between them looks abandoned.
Result<UniqueFd> lock_directory(const std::filesystem::path& directory) {
  UniqueFd fd = FVMM_TRY(open_file(directory, O_RDONLY | O_DIRECTORY));
  const Deadline deadline = Deadline::after(kLockWaitMax);
  while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return Error(Errc::kIo, "lock " + directory.string(), errno);
    if (deadline.passed()) {
      return Error(Errc::kUnavailable, directory.string() + " stays locked by another process that is starting");
    }
    const timespec pause{0, 1'000'000};  // flock has no timeout of its own
    ::nanosleep(&pause, nullptr);
  }
  return fd;
}

/// Removes a socket file that nobody listens on. Absent is fine.
Status remove_stale(const std::filesystem::path& path, const Address& address) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return {};
    return Error(Errc::kIo, "stat " + path.string(), errno);
  }
  if (!S_ISSOCK(info.st_mode)) return Error(Errc::kAlreadyExists, path.string() + " exists and is not a socket");
  const UniqueFd probe = FVMM_TRY(new_socket(SOCK_NONBLOCK));
  if (::connect(probe.get(), address.get(), address.bytes) == 0 || errno == EAGAIN) {  // EAGAIN: its backlog is full
    return Error(Errc::kAlreadyExists, path.string() + " is served by another process; stop it or choose another path");
  }
  if (errno != ECONNREFUSED) return Error(Errc::kIo, "probe " + path.string(), errno);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return Error(Errc::kIo, "unlink " + path.string(), errno);
  return {};
}

void take_descriptors(msghdr& message, std::vector<UniqueFd>& descriptors) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      descriptors.emplace_back(fd);
    }
  }
}

Error connect_error(const std::filesystem::path& path, int sys_errno) {
  const std::string what = "connect to " + path.string();
  switch (sys_errno) {
    case ENOENT:
    case ECONNREFUSED:
    case ENOTDIR:
      return Error(Errc::kUnavailable,
                   fmt::format("{}: {}; is fvmmd running? (systemctl start fvmmd, or name its socket "
                               "with --socket)",
                               what, ::strerror(sys_errno)));
    case EACCES:
    case EPERM:
      return Error(Errc::kPermissionDenied, what + ": run as root or join the socket's group", sys_errno);
    case EAGAIN:
      return Error(Errc::kDeadlineExceeded, what + ": nobody accepted in time");
    default:
      return Error(Errc::kUnavailable, what, sys_errno);
  }
}

}  // namespace

Result<UniqueFd> listen_unix(const std::filesystem::path& path) {
  const Address address = FVMM_TRY(to_address(path));
  const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
  const UniqueFd lock = FVMM_TRY(lock_directory(parent), "control socket");
  FVMM_TRY(remove_stale(path, address));
  UniqueFd fd = FVMM_TRY(new_socket(SOCK_NONBLOCK));
  // bind(2) gives the file the mode of the socket's inode less the umask. The umask belongs to every thread of the
  // process, so it is left alone: closed at first, then exactly the mode wanted, and only then does anybody listen.
  if (::fchmod(fd.get(), 0) != 0) return Error(Errc::kIo, "fchmod of a socket", errno);
  if (::bind(fd.get(), address.get(), address.bytes) != 0) return Error(Errc::kIo, "bind " + path.string(), errno);
  if (::chmod(path.c_str(), kSocketMode) != 0 || ::listen(fd.get(), kBacklog) != 0) {
    const int sys_errno = errno;
    ::unlink(path.c_str());
    return Error(Errc::kIo, "listen on " + path.string(), sys_errno);
  }
  return fd;
}

Result<UniqueFd> connect_unix(const std::filesystem::path& path, const Deadline& deadline) {
  const Address address = FVMM_TRY(to_address(path));
  UniqueFd fd = FVMM_TRY(new_socket(0));
  // A full backlog blocks connect, for at most the send timeout (socket(7)); a zero timeout would mean for ever.
  const auto left_us =
      std::max<std::int64_t>(1, std::chrono::duration_cast<std::chrono::microseconds>(deadline.left()).count());
  const timeval timeout{left_us / 1'000'000, left_us % 1'000'000};
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) != 0) {
    return Error(Errc::kIo, "SO_SNDTIMEO", errno);
  }
  int result = 0;
  do {
    result = ::connect(fd.get(), address.get(), address.bytes);
  } while (result != 0 && errno == EINTR && !deadline.passed());
  if (result != 0) return connect_error(path, errno);
  if (::fcntl(fd.get(), F_SETFL, O_NONBLOCK) != 0) return Error(Errc::kIo, "O_NONBLOCK", errno);
  return fd;
}

Result<PeerCredentials> peer_credentials(int socket) {
  ucred peer{};
  socklen_t bytes = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0) return Error(Errc::kIo, "SO_PEERCRED", errno);
  return PeerCredentials{peer.pid, peer.uid, peer.gid};
}

bool peer_has_group(int socket, const PeerCredentials& peer, unsigned gid) {
  if (peer.gid == gid) return true;
  std::vector<gid_t> groups(32);
  for (;;) {
    auto bytes = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
    if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes) == 0) {
      groups.resize(bytes / sizeof(gid_t));
      return std::find(groups.begin(), groups.end(), gid) != groups.end();
    }
    if (errno != ERANGE || groups.size() >= kGroupsMax) return false;
    groups.resize(groups.size() * 2);
  }
}

Received receive_some(int socket, std::span<char> into, std::vector<UniqueFd>& descriptors) {
  iovec part{into.data(), into.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsPerCallMax * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  Received received;
  do {
    received.bytes = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (received.bytes < 0 && errno == EINTR);
  if (received.bytes < 0) {
    received.sys_errno = errno;
    return received;
  }
  take_descriptors(message, descriptors);
  received.descriptors_lost = (message.msg_flags & MSG_CTRUNC) != 0;
  return received;
}

ssize_t send_some(int socket, std::string_view bytes, std::span<const int> descriptors) {
  iovec part{const_cast<char*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kDescriptorsPerCallMax * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent;
}

bool wait_for(int fd, short events, const Deadline& deadline) {
  for (;;) {
    pollfd entry{fd, events, 0};
    const auto left = deadline.left();
    const timespec wait{std::chrono::duration_cast<std::chrono::seconds>(left).count(), left.count() % 1'000'000'000};
    const int ready = ::ppoll(&entry, 1, &wait, nullptr);
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

}  // namespace fvmm::control
