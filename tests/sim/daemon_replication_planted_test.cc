// The simulator of replications is itself put to the test: a fault that is planted into the hosts around them must be
// found, and with nothing planted the same seeds are clean.
#include <gtest/gtest.h>

#include <string>

#include "support/sim_replica_run.h"

namespace fvmm::testing {
namespace {

constexpr std::uint64_t kSeedsToFindIn = 1'000;

struct PlantCase {
  const char* name;
  SimPlant plant;
};

class PlantedReplicationFault : public ::testing::TestWithParam<PlantCase> {};
INSTANTIATE_TEST_SUITE_P(Each, PlantedReplicationFault,
                         ::testing::Values(PlantCase{"UnsealedGenerationStarted", SimPlant::kUnsealedStarted},
                                           PlantCase{"AcknowledgedBeforeSealed", SimPlant::kAckBeforeSealed},
                                           PlantCase{"SealNotDurable", SimPlant::kSealNotDurable},
                                           PlantCase{"FencingNotDurable", SimPlant::kFencingNotDurable},
                                           PlantCase{"DirtyBitClearedLate", SimPlant::kLateClear},
                                           PlantCase{"DeviceMarkLost", SimPlant::kDeviceMarkLost},
                                           PlantCase{"HarvestBeforeSave", SimPlant::kHarvestBeforeSave}),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_P(PlantedReplicationFault, IsFound) {
  sim_stay_on_one_cpu();
  int found = 0;
  std::uint64_t first = 0;
  for (std::uint64_t seed = 1; seed <= kSeedsToFindIn; ++seed) {
    const SimReplicaOutcome outcome = sim_replica_play(seed, GetParam().plant);
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
    EXPECT_EQ(sim_replica_play(first).violation, "") << "it is the fault that was found, not the seed";
  }
}

}  // namespace
}  // namespace fvmm::testing
