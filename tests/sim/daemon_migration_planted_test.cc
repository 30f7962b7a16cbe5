// The simulator of two fvmmds is itself put to the test: a fault that is planted into the machines or the disks around
// the registry must be found, and with nothing planted the same seeds are clean.
#include <gtest/gtest.h>

#include <string>

#include "support/sim_daemon_run.h"
#include "support/sim_planted.h"

namespace fvmm::testing {
namespace {

class DaemonPlantedFault : public ::testing::TestWithParam<PlantCase> {};
INSTANTIATE_TEST_SUITE_P(Each, DaemonPlantedFault,
                         ::testing::Values(PlantCase{"VmRecordNotDurable", SimPlant::kVmRecordNotDurable},
                                           PlantCase{"UncommittedReplicaStarted", SimPlant::kUncommittedStart}),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_P(DaemonPlantedFault, IsFound) {
  sim_stay_on_one_cpu();
  expect_found(GetParam(), [](std::uint64_t seed, SimPlant plant) { return sim_daemon_play(seed, plant); });
}

}  // namespace
}  // namespace fvmm::testing
