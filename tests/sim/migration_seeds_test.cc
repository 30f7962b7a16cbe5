// Whole migrations from a seed each: the real sessions of both sides over a simulated network, clock and disk, with
// whatever the seed lets go wrong, and every promise of docs/handover.md checked at every step. support/sim_world.h.
//
//   FVMM_SIM_SEED=N sim_migration_seeds_test     plays one seed again, exactly, and says how it went
//   FVMM_SIM_SEEDS=N sim_migration_seeds_test    so many seeds instead of 10,000
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "support/sim_run.h"

namespace fvmm::testing {
namespace {

constexpr std::uint64_t kSeeds = 10'000;
constexpr std::uint64_t kShards = 20;

std::ptrdiff_t open_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

class MigrationSeeds : public ::testing::TestWithParam<std::uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Shards, MigrationSeeds, ::testing::Range(std::uint64_t{0}, kShards));

TEST_P(MigrationSeeds, KeepEveryPromise) {
  sim_stay_on_one_cpu();
  if (const auto only = sim_env("FVMM_SIM_SEED")) {
    if (GetParam() != 0) GTEST_SKIP() << "one seed is asked for";
    const SimOutcome outcome = sim_play(*only);
    std::printf("FVMM_SIM_SEED=%llu: %s after %.3f ms of its time, %llu switches; reason: %s; violation: %s\n",
                static_cast<unsigned long long>(*only), outcome.result.c_str(),
                static_cast<double>(outcome.ended) / 1e6, static_cast<unsigned long long>(outcome.switches),
                outcome.reason.c_str(), outcome.violation.c_str());
    EXPECT_EQ(outcome.violation, "");
    return;
  }
  const std::uint64_t each = (sim_env("FVMM_SIM_SEEDS").value_or(kSeeds) + kShards - 1) / kShards;
  const std::uint64_t first = 1 + GetParam() * each;
  std::map<std::string, int> results;
  (void)sim_play(first);  // what is made once and kept
  const auto descriptors = open_descriptors();
  for (std::uint64_t seed = first; seed < first + each; ++seed) {
    const SimOutcome outcome = sim_play(seed);
    ++results[outcome.result];
    EXPECT_EQ(outcome.violation, "") << "play it again with FVMM_SIM_SEED=" << seed;
  }
  EXPECT_EQ(open_descriptors(), descriptors) << "a descriptor is left open";
  std::printf("seeds %llu to %llu:", static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first + each - 1));
  for (const auto& [result, count] : results) std::printf(" %s %d", result.c_str(), count);
  std::printf("\n");
  if (each < 100) return;
  for (const char* result : {"completed", "aborted", "unknown", "killed"}) {
    EXPECT_GT(results[result], 0) << "the mixture shall have some of each: " << result;
  }
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
