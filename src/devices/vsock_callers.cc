#include "devices/vsock_callers.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <utility>

#include "base/check.h"

namespace fvmm::devices {

std::optional<std::uint32_t> parse_connect(std::string_view line) {
  constexpr std::string_view kWord = "CONNECT ";
  if (!line.starts_with(kWord)) return std::nullopt;
  line.remove_prefix(kWord.size());
  if (line.ends_with('\r')) line.remove_suffix(1);
  std::uint32_t port = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), port);
  if (error != std::errc{} || end != line.data() + line.size()) return std::nullopt;
  return port;
}

void VsockCallers::watch(std::vector<pollfd>& fds) const {
  for (const Caller& caller : callers_) fds.push_back({.fd = caller.socket.get(), .events = POLLIN, .revents = 0});
}

std::vector<VsockCall> VsockCallers::look(std::span<const pollfd> fds, SteadyTime now) {
  FVMM_CHECK(fds.size() == callers_.size(), "what was watched is looked at");
  std::vector<VsockCall> calls;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    Caller& caller = callers_[i];
    if (fds[i].revents != 0) read_line(caller);
    if (caller.line.ends_with('\n')) {
      const auto port = parse_connect(std::string_view(caller.line).substr(0, caller.line.size() - 1));
      if (port) calls.push_back({.socket = std::move(caller.socket), .port = *port});
      caller.socket.reset();
    }
    if (now >= caller.deadline || caller.line.size() >= kVsockLineBytesMax) caller.socket.reset();
  }
  std::erase_if(callers_, [](const Caller& caller) { return !caller.socket; });
  return calls;
}

// Looks first, and then takes the line's part of it: what follows is for the guest.
void VsockCallers::read_line(Caller& caller) {
  std::array<char, kVsockLineBytesMax> bytes{};
  const int fd = caller.socket.get();
  const ssize_t there = ::recv(fd, bytes.data(), kVsockLineBytesMax - caller.line.size(), MSG_DONTWAIT | MSG_PEEK);
  if (there < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (there <= 0) return caller.socket.reset();
  const std::string_view seen(bytes.data(), static_cast<std::size_t>(there));
  const std::size_t end = seen.find('\n');
  const std::size_t wanted = end == std::string_view::npos ? seen.size() : end + 1;
  const ssize_t taken = ::recv(fd, bytes.data(), wanted, MSG_DONTWAIT);
  if (taken != static_cast<ssize_t>(wanted)) return caller.socket.reset();
  caller.line.append(seen.substr(0, wanted));
}

std::optional<SteadyTime> VsockCallers::deadline() const {
  if (callers_.empty()) return std::nullopt;
  return callers_.front().deadline;
}

void VsockCallers::postpone(std::chrono::nanoseconds by) {
  for (Caller& caller : callers_) caller.deadline += by;
}

}  // namespace fvmm::devices
