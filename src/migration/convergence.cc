#include "migration/convergence.h"

#include "base/units.h"

namespace fvmm::migration {

std::chrono::microseconds expected_downtime(const Progress& progress) {
  if (progress.pages_left == 0) return kPauseFixedCost;
  if (progress.bytes_per_second <= 0) return std::chrono::microseconds::max();
  const double seconds = static_cast<double>(progress.pages_left * kPageBytes) / progress.bytes_per_second;
  constexpr double kLongest = 3600;
  return kPauseFixedCost +
         std::chrono::microseconds(static_cast<std::int64_t>((seconds > kLongest ? kLongest : seconds) * 1e6));
}

Decision decide(const Progress& progress) {
  if (expected_downtime(progress) <= progress.max_downtime || progress.pages_left == 0) return Decision::kPause;
  if (progress.rounds_done >= kRoundsMax || progress.deadline_near) return Decision::kGiveUp;
  return Decision::kContinue;
}

}  // namespace fvmm::migration
