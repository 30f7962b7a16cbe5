// The simulator is itself put to the test: a fault that is planted into the hosts around the sessions must be found,
// and with nothing planted the same seeds are clean (sim/migration_seeds_test.cc plays them, too).
#include <gtest/gtest.h>

#include <string>

#include "support/sim_run.h"

namespace fvmm::testing {
namespace {

constexpr std::uint64_t kSeedsToFindIn = 1'000;

struct PlantCase {
  const char* name;
  SimPlant plant;
};

class PlantedFault : public ::testing::TestWithParam<PlantCase> {};
INSTANTIATE_TEST_SUITE_P(Each, PlantedFault,
                         ::testing::Values(PlantCase{"DirtyBitClearedLate", SimPlant::kLateClear},
                                           PlantCase{"CommitAcceptedAfterRefusal", SimPlant::kLateCommit},
                                           PlantCase{"DeviceMarkLost", SimPlant::kDeviceMarkLost},
                                           PlantCase{"HarvestBeforeSave", SimPlant::kHarvestBeforeSave},
                                           PlantCase{"UncommittedReplicaStarted", SimPlant::kUncommittedStart},
                                           PlantCase{"RefusalNotDurable", SimPlant::kRefusalNotDurable}),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_P(PlantedFault, IsFound) {
  sim_stay_on_one_cpu();
  int found = 0;
  std::uint64_t first = 0;
  for (std::uint64_t seed = 1; seed <= kSeedsToFindIn; ++seed) {
    const SimOutcome outcome = sim_play(seed, GetParam().plant);
    if (outcome.violation.empty()) continue;
    if (++found == 1) {
      first = seed;
      std::printf("%s: first found by seed %llu: %s\n", GetParam().name, static_cast<unsigned long long>(seed),
                  outcome.violation.c_str());
    }
    if (found == 3) break;  // not by chance
  }
  EXPECT_GE(found, 3) << "of " << kSeedsToFindIn << " seeds";
  if (first != 0) {
    EXPECT_EQ(sim_play(first).violation, "") << "it is the fault that was found, not the seed";
  }
}

}  // namespace
}  // namespace fvmm::testing
