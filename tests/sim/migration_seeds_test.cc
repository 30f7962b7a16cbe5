// Whole migrations from a seed each: the real sessions of both sides over a simulated network, clock and disk, with
// whatever the seed lets go wrong, and every promise of docs/handover.md checked at every step. support/sim_world.h.
//
//   FVMM_SIM_SEED=N sim_migration_seeds_test     plays one seed again, exactly, and says how it went
//   FVMM_SIM_SEEDS=N sim_migration_seeds_test    so many seeds instead of 10,000
#include <gtest/gtest.h>

#include <cstdint>

#include "support/sim_run.h"
#include "support/sim_seeds.h"

namespace fvmm::testing {
namespace {

constexpr SimSeeds kSeeds{.program = "sim_migration_seeds_test", .count = 10'000, .shards = 20};

class MigrationSeeds : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Shards, MigrationSeeds, ::testing::Range(std::uint64_t{0}, kSeeds.shards));

TEST_P(MigrationSeeds, KeepEveryPromise) {
  sim_play_shard(kSeeds, GetParam(), [](std::uint64_t seed) { return sim_play(seed); },
                 {"completed", "aborted", "unknown", "killed"});
}

TEST(MigrationSeed, PlayedAgainIsTheSameHistory) {
  sim_stay_on_one_cpu();
  for (std::uint64_t seed = 1; seed <= 100; ++seed) {
    const SimOutcome first = sim_play(seed);
    const SimOutcome second = sim_play(seed);
    EXPECT_EQ(first.result, second.result) << "seed " << seed;
    EXPECT_EQ(first.ended, second.ended) << "seed " << seed;
    EXPECT_EQ(first.switches, second.switches) << "seed " << seed;
  }
}

}  // namespace
}  // namespace fvmm::testing
