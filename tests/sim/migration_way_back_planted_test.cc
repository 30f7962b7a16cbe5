// The simulator of ways back is itself put to the test: a fault that is planted into the hosts around the talk must be
// found, and with nothing planted the same seeds are clean.
#include <gtest/gtest.h>

#include <string>

#include "support/sim_planted.h"
#include "support/sim_way_back_run.h"

namespace fvmm::testing {
namespace {

class PlantedWayBackFault : public ::testing::TestWithParam<PlantCase> {};
INSTANTIATE_TEST_SUITE_P(Each, PlantedWayBackFault,
                         ::testing::Values(PlantCase{"HashedAfterTheLogIsRead", SimPlant::kLogReadEarly},
                                           PlantCase{"DeviceMarkLost", SimPlant::kDeviceMarkLost},
                                           PlantCase{"KeptBeforeDurable", SimPlant::kSealNotDurable},
                                           PlantCase{"KeptWithoutComparing", SimPlant::kCompareSkipped}),
                         [](const auto& one) { return std::string(one.param.name); });

TEST_P(PlantedWayBackFault, IsFound) {
  sim_stay_on_one_cpu();
  expect_found(GetParam(), [](std::uint64_t seed, SimPlant plant) { return sim_way_back_play(seed, plant); });
}

}  // namespace
}  // namespace fvmm::testing
