// A limit on bytes per second, shared by all connections of a session.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "base/clock.h"
#include "base/result.h"

namespace fvmm::migration {

inline constexpr std::uint64_t kBandwidthMin = 125'000;  // 1 Mbit/s: below that a frame takes longer than the deadlines

/// Lets bytes pass at a rate; who comes early waits. Thread: any.
class Pacer {
 public:
  /// @param bytes_per_second  0: no limit
  explicit Pacer(std::uint64_t bytes_per_second) : rate_(bytes_per_second) {}
  /// Returns when `bytes` may leave. kDeadlineExceeded at once when their turn comes after the deadline, kCancelled
  /// after cancel().
  Status pass(std::uint64_t bytes, const Deadline& deadline);
  /// Returns when what has passed is off the link, so that nothing of it delays the next.
  Status settle(const Deadline& deadline) { return pass(0, deadline); }
  void cancel();

 private:
  const std::uint64_t rate_;
  std::mutex mutex_;
  std::condition_variable changed_;
  SteadyTime free_at_{};    // mutex_; when what has passed so far is off the link
  bool cancelled_ = false;  // mutex_
};

}  // namespace fvmm::migration
