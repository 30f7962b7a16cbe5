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

bool stalled(const Progress& progress) {
  return progress.pages_left >= progress.pages_before - progress.pages_before / 10;
}

unsigned next_throttle(unsigned percent) {
  for (const unsigned step : kThrottleSteps) {
    if (step > percent) return step;
  }
  return kThrottleSteps.back();
}

Decision decide(const Progress& progress) {
  if (expected_downtime(progress) <= progress.max_downtime || progress.pages_left == 0) return Decision::kPause;
  if (progress.deadline_near) return Decision::kGiveUp;
  const bool can_throttle = progress.may_throttle && progress.throttle_percent < kThrottleSteps.back();
  const std::uint32_t stalled_max = can_throttle ? kStalledRounds : kStalledRoundsMax;
  const std::uint32_t rounds_max = can_throttle ? kThrottleRounds : kRoundsMax;
  if (progress.stalled_rounds < stalled_max && progress.rounds_done < rounds_max) return Decision::kContinue;
  return can_throttle ? Decision::kThrottle : Decision::kGiveUp;
}

}  // namespace fvmm::migration
