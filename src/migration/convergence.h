// When to stop copying and pause: one pure function.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace fvmm::migration {

inline constexpr std::uint32_t kRoundsMax = 40;         // at one throttle step
inline constexpr std::uint32_t kThrottleRounds = 8;     // at one throttle step, before the next one
inline constexpr std::uint32_t kStalledRounds = 3;      // so many in a row before the guest is slowed, one step more
inline constexpr std::uint32_t kStalledRoundsMax = 12;  // so many in a row, and it never will converge
inline constexpr std::array<unsigned, 7> kThrottleSteps{20, 40, 60, 80, 90, 95, 99};  // percent of the guest's time
inline constexpr std::chrono::microseconds kPauseFixedCost{1500};  // kick, state, three messages: measured, rounded up

struct Progress {
  std::uint32_t rounds_done = 0;  // since the last throttle step
  std::uint64_t pages_left = 0;   // dirtied during the last round
  double bytes_per_second = 0;    // measured over the last round
  std::chrono::microseconds max_downtime{};
  bool deadline_near = false;        // less than a quarter of the time is left
  std::uint64_t pages_before = 0;    // that the last round sent
  std::uint32_t stalled_rounds = 0;  // in a row, since the last throttle step; the caller counts by stalled()
  bool may_throttle = false;         // --allow-throttle
  unsigned throttle_percent = 0;     // in force
};

enum class Decision { kContinue, kPause, kThrottle, kGiveUp };

/// Time to send what is left at the measured rate, plus what every pause costs.
std::chrono::microseconds expected_downtime(const Progress& progress);

/// Whether the last round gained next to nothing: less than a tenth of what it sent.
bool stalled(const Progress& progress);

/// kPause when the expected downtime fits. kThrottle when rounds gain nothing, or too little, and the guest may be
/// slowed by another step. kGiveUp when rounds or time have run out, or nothing can be gained any more: the guest
/// dirties faster than the link carries, and the command ends with the guest untouched.
Decision decide(const Progress& progress);

/// The step after `percent`; the last one stays.
unsigned next_throttle(unsigned percent);

}  // namespace fvmm::migration
