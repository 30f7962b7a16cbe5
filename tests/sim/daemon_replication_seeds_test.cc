// Whole replications from a seed each: continuous templating, the peer's store and its records of recoveries, over a
// simulated network, clock and disk, with whatever the seed lets go wrong, and every promise of docs/replication.md
// checked at every step. support/sim_replica_world.h.
//
//   FVMM_SIM_SEED=N sim_daemon_replication_seeds_test --gtest_filter='*Promise*/0'   plays one seed again, exactly
//   FVMM_SIM_SEEDS=N sim_daemon_replication_seeds_test                               so many seeds instead of kSeeds
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "support/sim_replica_run.h"

namespace fvmm::testing {
namespace {

constexpr std::uint64_t kSeeds = 2'000;
constexpr std::uint64_t kShards = 20;

std::ptrdiff_t open_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

class ReplicationSeeds : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Shards, ReplicationSeeds, ::testing::Range(std::uint64_t{0}, kShards));

TEST_P(ReplicationSeeds, KeepEveryPromise) {
  sim_stay_on_one_cpu();
  if (const auto only = sim_env("FVMM_SIM_SEED")) {
    if (GetParam() != 0) GTEST_SKIP() << "one seed is asked for";
    const SimReplicaOutcome outcome = sim_replica_play(*only);
    std::printf("FVMM_SIM_SEED=%llu: %s after %.3f ms of its time, %llu generations, %llu switches; violation: %s\n",
                static_cast<unsigned long long>(*only), outcome.result.c_str(),
                static_cast<double>(outcome.ended) / 1e6, static_cast<unsigned long long>(outcome.sealed),
                static_cast<unsigned long long>(outcome.switches), outcome.violation.c_str());
    EXPECT_EQ(outcome.violation, "");
    return;
  }
  const std::uint64_t each = (sim_env("FVMM_SIM_SEEDS").value_or(kSeeds) + kShards - 1) / kShards;
  const std::uint64_t first = 1 + GetParam() * each;
  std::map<std::string, int> results;
  std::uint64_t sealed = 0;
  (void)sim_replica_play(first);  // what is made once and kept
  const auto descriptors = open_descriptors();
  for (std::uint64_t seed = first; seed < first + each; ++seed) {
    const SimReplicaOutcome outcome = sim_replica_play(seed);
    ++results[outcome.result];
    sealed += outcome.sealed;
    EXPECT_EQ(outcome.violation, "") << "play it again with FVMM_SIM_SEED=" << seed
                                     << " bin/sim_daemon_replication_seeds_test --gtest_filter='*Promise*/0'";
  }
  EXPECT_EQ(open_descriptors(), descriptors) << "a descriptor is left open";
  std::printf("seeds %llu to %llu, %llu generations:", static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first + each - 1), static_cast<unsigned long long>(sealed));
  for (const auto& [result, count] : results) std::printf(" %s %d", result.c_str(), count);
  std::printf("\n");
  if (each < 100) return;
  for (const char* result : {"recovered", "fenced", "lost"}) {
    EXPECT_GT(results[result], 0) << "the mixture shall have some of each: " << result;
  }
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
