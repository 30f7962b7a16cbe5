// The simulator of replications is itself put to the test: a fault that is planted into the hosts around them must be
// found, and with nothing planted the same seeds are clean.
#include <gtest/gtest.h>

#include <string>

#include "support/sim_planted.h"
#include "support/sim_replica_run.h"

namespace fvmm::testing {
namespace {

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
  expect_found(GetParam(), [](std::uint64_t seed, SimPlant plant) { return sim_replica_play(seed, plant); });
}

}  // namespace
}  // namespace fvmm::testing
