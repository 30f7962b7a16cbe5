#include "devices/net_stream.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fvmm::devices {
namespace {

std::array<std::byte, 4> big_endian(std::size_t value) {
  return {static_cast<std::byte>(value >> 24), static_cast<std::byte>(value >> 16), static_cast<std::byte>(value >> 8),
          static_cast<std::byte>(value)};
}

}  // namespace

Result<UniqueFd> open_net_stream(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return Error(Errc::kInvalidArgument, fmt::format("network socket {}: a path has 1 to {} bytes", path.substr(0, 128),
                                                     sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!socket) return Error(Errc::kIo, "socket", errno);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return socket;
  switch (errno) {
    case ENOENT:
      return Error(Errc::kNotFound, fmt::format("network socket {} does not exist: start what listens there", path));
    case ECONNREFUSED:
    case EAGAIN:
      return Error(Errc::kUnavailable,
                   fmt::format("nobody takes a connection at network socket {}: start what listens there", path));
    case EACCES:
    case EPERM:
      return Error(Errc::kPermissionDenied,
                   fmt::format("no permission for network socket {}: fvmmd's user must be able to write to it", path));
    default:
      return Error(Errc::kIo, fmt::format("connect to network socket {}", path), errno);
  }
}

StreamBackend::StreamBackend(UniqueFd socket) : socket_(std::move(socket)), data_(kNetDataBytesMax) {}

void StreamBackend::lost(const char* why) {
  if (!gone_.exchange(true)) spdlog::warn("a network's socket is gone: {}", why);
}

std::size_t StreamBackend::length() const {
  std::size_t value = 0;
  for (const std::byte byte : prefix_) value = value << 8 | std::to_integer<std::size_t>(byte);
  return value;
}

// One call gets the rest of a frame and the length of the next; never more, so what the guest cannot take yet stays
// with the sender. False: nothing has come.
bool StreamBackend::fill() {
  const bool in_data = prefix_bytes_ == prefix_.size();
  std::array<std::byte, 4> next{};
  std::array<iovec, 2> parts{};
  if (in_data) {
    parts[0] = {.iov_base = data_.data() + data_bytes_, .iov_len = length() - data_bytes_};
    parts[1] = {.iov_base = next.data(), .iov_len = next.size()};
  } else {
    parts[0] = {.iov_base = prefix_.data() + prefix_bytes_, .iov_len = prefix_.size() - prefix_bytes_};
  }
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = in_data ? 2 : 1;
  const ssize_t got = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT);
  if (got <= 0) {
    if (got == 0) lost("closed by its peer");
    if (got < 0 && errno != EAGAIN && errno != EINTR) lost(std::strerror(errno));
    return false;
  }
  const auto bytes = static_cast<std::size_t>(got);
  if (!in_data) {
    prefix_bytes_ += bytes;
    if (prefix_bytes_ == prefix_.size() && length() > kNetDataBytesMax) lost("it sent a frame of an impossible length");
    return !gone_;
  }
  const std::size_t here = std::min(bytes, parts[0].iov_len);
  data_bytes_ += here;
  if (data_bytes_ == length()) {
    next_prefix_ = next;
    next_prefix_bytes_ = bytes - here;
  }
  return true;
}

std::optional<std::size_t> StreamBackend::receive(std::span<std::byte> out) {
  while (!gone_ && (prefix_bytes_ < prefix_.size() || data_bytes_ < length())) {
    if (!fill()) return std::nullopt;
  }
  if (gone_) return std::nullopt;
  const std::size_t bytes = length();
  std::ranges::fill(out.first(kNetHeaderBytes), std::byte{0});
  std::copy_n(data_.begin(), bytes, out.begin() + kNetHeaderBytes);
  prefix_ = next_prefix_;
  prefix_bytes_ = std::exchange(next_prefix_bytes_, 0);
  data_bytes_ = 0;
  if (prefix_bytes_ == prefix_.size() && length() > kNetDataBytesMax) lost("it sent a frame of an impossible length");
  return kNetHeaderBytes + bytes;
}

void StreamBackend::emit(std::span<const std::byte> frame) {
  const std::span<const std::byte> data = frame.subspan(kNetHeaderBytes);
  const auto prefix = big_endian(data.size());
  const std::lock_guard lock(mutex_);
  if (gone_) return count_dropped();
  const std::size_t waiting = backlog_.size() - backlog_sent_;
  if (waiting + prefix.size() + data.size() > kNetBacklogBytesMax) return count_dropped();
  std::size_t sent = 0;
  if (waiting == 0) {
    std::array<iovec, 2> parts{iovec{.iov_base = const_cast<std::byte*>(prefix.data()), .iov_len = prefix.size()},
                               iovec{.iov_base = const_cast<std::byte*>(data.data()), .iov_len = data.size()}};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t wrote = ::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (wrote < 0 && errno != EAGAIN && errno != EINTR) {
      lost(std::strerror(errno));
      return count_dropped();
    }
    sent = wrote > 0 ? static_cast<std::size_t>(wrote) : 0;
  }
  if (sent < prefix.size())
    backlog_.insert(backlog_.end(), prefix.begin() + static_cast<std::ptrdiff_t>(sent), prefix.end());
  const std::size_t data_sent = sent - std::min(sent, prefix.size());
  backlog_.insert(backlog_.end(), data.begin() + static_cast<std::ptrdiff_t>(data_sent), data.end());
}

bool StreamBackend::backlogged() const {
  const std::lock_guard lock(mutex_);
  return !gone_ && !backlog_.empty();
}

void StreamBackend::flush() {
  const std::lock_guard lock(mutex_);
  if (gone_) backlog_.clear();
  if (backlog_.empty()) return;
  const std::size_t left = backlog_.size() - backlog_sent_;
  const ssize_t wrote = ::send(socket_.get(), backlog_.data() + backlog_sent_, left, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (wrote < 0) {
    if (errno != EAGAIN && errno != EINTR) lost(std::strerror(errno));
    return;
  }
  backlog_sent_ += static_cast<std::size_t>(wrote);
  if (backlog_sent_ < backlog_.size()) return;
  backlog_.clear();
  backlog_sent_ = 0;
}

void StreamBackend::close() {
  const std::lock_guard lock(mutex_);
  gone_ = true;
  socket_.reset();
}

}  // namespace fvmm::devices
