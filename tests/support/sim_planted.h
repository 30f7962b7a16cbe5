// Whether a simulator finds a planted fault, and finds the fault and not the seed.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>

#include "support/sim_plan.h"

namespace fvmm::testing {

inline constexpr std::uint64_t kSeedsToFindIn = 1'000;

struct PlantCase {
  const char* name;
  SimPlant plant;
};

/// `play(seed, plant)` plays one history and returns its outcome, with the violation that was found.
template <class Play>
void expect_found(const PlantCase& planted, Play play) {
  int found = 0;
  std::uint64_t first = 0;
  for (std::uint64_t seed = 1; seed <= kSeedsToFindIn; ++seed) {
    const auto outcome = play(seed, planted.plant);
    if (outcome.violation.empty()) continue;
    if (++found == 1) {
      first = seed;
      std::printf("%s: first found by seed %llu: %s\n", planted.name, static_cast<unsigned long long>(seed),
                  outcome.violation.c_str());
    }
    if (found == 3) break;  // not by chance
  }
  EXPECT_GE(found, 3) << "of " << kSeedsToFindIn << " seeds";
  if (first != 0) {
    EXPECT_EQ(play(first, SimPlant::kNone).violation, "") << "it is the fault that was found, not the seed";
  }
}

}  // namespace fvmm::testing
