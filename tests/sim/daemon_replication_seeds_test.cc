// Whole replications from a seed each: continuous templating, the peer's store and its records of recoveries, over a
// simulated network, clock and disk, with whatever the seed lets go wrong, and every promise of docs/replication.md
// checked at every step. support/sim_replica_world.h.
//
//   FVMM_SIM_SEED=N sim_daemon_replication_seeds_test --gtest_filter='*Promise*/0'   plays one seed again, exactly
//   FVMM_SIM_SEEDS=N sim_daemon_replication_seeds_test                               so many seeds instead of kSeeds
#include <gtest/gtest.h>

#include <cstdint>

#include "support/sim_replica_run.h"
#include "support/sim_seeds.h"

namespace fvmm::testing {
namespace {

constexpr SimSeeds kSeeds{.program = "sim_daemon_replication_seeds_test", .count = 2'000, .shards = 20};

class ReplicationSeeds : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Shards, ReplicationSeeds, ::testing::Range(std::uint64_t{0}, kSeeds.shards));

TEST_P(ReplicationSeeds, KeepEveryPromise) {
  sim_play_shard(kSeeds, GetParam(), [](std::uint64_t seed) { return sim_replica_play(seed); },
                 {"recovered", "fenced", "lost"});
}

TEST(ReplicationSeed, PlayedAgainIsTheSameHistory) {
  sim_stay_on_one_cpu();
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const SimReplicaOutcome first = sim_replica_play(seed);
    const SimReplicaOutcome second = sim_replica_play(seed);
    EXPECT_EQ(first.result, second.result) << "seed " << seed;
    EXPECT_EQ(first.ended, second.ended) << "seed " << seed;
    EXPECT_EQ(first.switches, second.switches) << "seed " << seed;
    EXPECT_EQ(first.sealed, second.sealed) << "seed " << seed;
  }
}

}  // namespace
}  // namespace fvmm::testing
