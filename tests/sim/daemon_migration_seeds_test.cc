// Whole migrations between two fvmmds from a seed each: registry, records, ledgers, supervisor and `migrate resolve`
// around the real sessions, over a simulated network, clock and disk, with whatever the seed lets go wrong, fvmmd's own
// death included. Every promise of docs/handover.md is checked at every step. support/sim_daemon_world.h.
//
//   FVMM_SIM_SEED=N sim_daemon_migration_seeds_test --gtest_filter='*Promise*/0'   plays one seed again, exactly
//   FVMM_SIM_SEEDS=N sim_daemon_migration_seeds_test                               so many seeds instead of kSeeds
#include <gtest/gtest.h>

#include <string>

#include "support/sim_daemon_run.h"
#include "support/sim_seeds.h"

namespace fvmm::testing {
namespace {

constexpr SimSeeds kSeeds{.program = "sim_daemon_migration_seeds_test", .count = 10'000, .shards = 20};

class DaemonMigrationSeeds : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Shards, DaemonMigrationSeeds, ::testing::Range(std::uint64_t{0}, kSeeds.shards));

TEST_P(DaemonMigrationSeeds, KeepEveryPromise) {
  sim_play_shard(kSeeds, GetParam(), [](std::uint64_t seed) { return sim_daemon_play(seed); },
                 {"completed", "aborted", "unknown", "killed"});
}

TEST(DaemonMigrationSeed, PlayedAgainIsTheSameHistory) {
  sim_stay_on_one_cpu();
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const SimOutcome first = sim_daemon_play(seed);
    const SimOutcome second = sim_daemon_play(seed);
    EXPECT_EQ(first.result, second.result) << "seed " << seed;
    EXPECT_EQ(first.ended, second.ended) << "seed " << seed;
    EXPECT_EQ(first.switches, second.switches) << "seed " << seed;
  }
}

}  // namespace
}  // namespace fvmm::testing
