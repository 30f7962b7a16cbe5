#include "migration/pacer.h"

#include <algorithm>

namespace fvmm::migration {

Status Pacer::pass(std::uint64_t bytes, const Deadline& deadline) {
  if (rate_ == 0) return {};
  std::unique_lock lock(mutex_);
  const SteadyTime turn = std::max(free_at_, std::chrono::steady_clock::now());
  if (turn > deadline.at())
    return Error(Errc::kDeadlineExceeded, "the bandwidth limit leaves no time; see --bandwidth");
  free_at_ = turn + std::chrono::nanoseconds(
                        static_cast<std::int64_t>(static_cast<double>(bytes) * 1e9 / static_cast<double>(rate_)));
  changed_.wait_until(lock, turn, [this] { return cancelled_; });
  if (cancelled_) return Error(Errc::kCancelled, "cancelled");
  return {};
}

void Pacer::cancel() {
  const std::lock_guard lock(mutex_);
  cancelled_ = true;
  changed_.notify_all();
}

}  // namespace fvmm::migration
