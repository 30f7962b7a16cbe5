// When to stop copying and pause: one pure function.
#pragma once

#include <chrono>
#include <cstdint>

namespace fvmm::migration {

inline constexpr std::uint32_t kRoundsMax = 40;
inline constexpr std::chrono::microseconds kPauseFixedCost{1500};  // kick, state, three messages: measured, rounded up

struct Progress {
  std::uint32_t rounds_done = 0;
  std::uint64_t pages_left = 0;  // dirtied during the last round
  double bytes_per_second = 0;   // measured over the last round
  std::chrono::microseconds max_downtime{};
  bool deadline_near = false;  // less than a quarter of the time is left
};

enum class Decision { kContinue, kPause, kGiveUp };

/// Time to send what is left at the measured rate, plus what every pause costs.
std::chrono::microseconds expected_downtime(const Progress& progress);

/// kPause when the expected downtime fits; kGiveUp when rounds or time have run out: the guest dirties faster than the
/// link carries, and the command ends with the guest untouched.
Decision decide(const Progress& progress);

}  // namespace fvmm::migration
