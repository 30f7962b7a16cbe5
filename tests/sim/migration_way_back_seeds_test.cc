// Whole ways back from a seed each: migrations there and back between two hosts, with the talk of both sides after each
// hand-over, over a simulated network, clock and disk, with whatever the seed lets go wrong, and every promise of
// docs/techniques.md about it checked. support/sim_way_back_world.h.
//
//   FVMM_SIM_SEED=N sim_migration_way_back_seeds_test --gtest_filter='*Promise*/0'   plays one seed again, exactly
//   FVMM_SIM_SEEDS=N sim_migration_way_back_seeds_test                               so many seeds instead of kSeeds
#include <gtest/gtest.h>

#include <cstdint>

#include "support/sim_seeds.h"
#include "support/sim_way_back_run.h"

namespace fvmm::testing {
namespace {

constexpr SimSeeds kSeeds{.program = "sim_migration_way_back_seeds_test", .count = 2'000, .shards = 20};

class WayBackSeeds : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Shards, WayBackSeeds, ::testing::Range(std::uint64_t{0}, kSeeds.shards));

TEST_P(WayBackSeeds, KeepEveryPromise) {
  sim_play_shard(kSeeds, GetParam(), [](std::uint64_t seed) { return sim_way_back_play(seed); },
                 {"agreed", "template", "lost"});
}

TEST(WayBackSeed, PlayedAgainIsTheSameHistory) {
  sim_stay_on_one_cpu();
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const SimOutcome first = sim_way_back_play(seed);
    const SimOutcome second = sim_way_back_play(seed);
    EXPECT_EQ(first.result, second.result) << "seed " << seed;
    EXPECT_EQ(first.ended, second.ended) << "seed " << seed;
    EXPECT_EQ(first.switches, second.switches) << "seed " << seed;
  }
}

}  // namespace
}  // namespace fvmm::testing
