// The simulator is itself put to the test: a fault that is planted into the hosts around the sessions must be found,
// and with nothing planted the same seeds are clean (sim/migration_seeds_test.cc plays them, too).
#include <gtest/gtest.h>

#include <string>

#include "support/sim_planted.h"
#include "support/sim_run.h"

namespace fvmm::testing {
namespace {

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
  expect_found(GetParam(), [](std::uint64_t seed, SimPlant plant) { return sim_play(seed, plant); });
}

}  // namespace
}  // namespace fvmm::testing
