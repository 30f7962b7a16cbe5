// Programs that have connected to a vsock device's socket and have not said yet which port they want: each sends one
// line, "CONNECT PORT\n". Not a byte behind it is read here. Owner: VsockHub, on the device's thread.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"

namespace fvmm::devices {

inline constexpr std::size_t kVsockLineBytesMax = 32;     // with its end; the longest that makes sense has 19
inline constexpr std::chrono::seconds kVsockLineWait{5};  // for a program to say what it wants

/// A program that has said it.
struct VsockCall {
  UniqueFd socket;
  std::uint32_t port = 0;  // of the guest
};

/// The port of a line without its end; nothing when it is no such line.
std::optional<std::uint32_t> parse_connect(std::string_view line);

class VsockCallers {
 public:
  void add(UniqueFd socket, SteadyTime now) { callers_.push_back({std::move(socket), {}, now + kVsockLineWait}); }
  [[nodiscard]] std::size_t size() const { return callers_.size(); }
  /// What to poll for, one each.
  void watch(std::vector<pollfd>& fds) const;
  /// What poll(2) said of watch()'s. Who makes no sense, hangs up, or takes too long is closed.
  /// @return  those who have said what they want
  std::vector<VsockCall> look(std::span<const pollfd> fds, SteadyTime now);
  [[nodiscard]] std::optional<SteadyTime> deadline() const;  // the next one
  void postpone(std::chrono::nanoseconds by);
  void clear() { callers_.clear(); }

 private:
  struct Caller {
    UniqueFd socket;  // empty: it goes
    std::string line;
    SteadyTime deadline;
  };
  static void read_line(Caller& caller);

  std::vector<Caller> callers_;  // in order of arrival, so of deadlines
};

}  // namespace fvmm::devices
