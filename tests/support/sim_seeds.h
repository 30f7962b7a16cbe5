// Many seeds, in shards: what every program that plays whole histories does with them.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <string>

#include "support/sim_run.h"

namespace fvmm::testing {

struct SimSeeds {
  const char* program;
  std::uint64_t count;
  std::uint64_t shards;
};

inline std::ptrdiff_t sim_open_descriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
}

/// FVMM_SIM_SEED: that one alone, and its story.
template <class Play>
void sim_play_one(std::uint64_t seed, std::uint64_t shard, Play play) {
  if (shard != 0) GTEST_SKIP() << "one seed is asked for";
  const auto outcome = play(seed);
  std::printf("FVMM_SIM_SEED=%llu: %s after %.3f ms of its time, %llu switches; reason: %s; violation: %s\n",
              static_cast<unsigned long long>(seed), outcome.result.c_str(), static_cast<double>(outcome.ended) / 1e6,
              static_cast<unsigned long long>(outcome.switches), outcome.reason.c_str(), outcome.violation.c_str());
  EXPECT_EQ(outcome.violation, "");
}

/// `play(seed)` returns an outcome with violation, result, reason, ended and switches. `mixture`: of a hundred seeds,
/// some shall end in each of these.
template <class Play>
void sim_play_shard(const SimSeeds& seeds, std::uint64_t shard, Play play, std::initializer_list<const char*> mixture) {
  sim_stay_on_one_cpu();
  if (const auto only = sim_env("FVMM_SIM_SEED")) return sim_play_one(*only, shard, play);
  const std::uint64_t each = (sim_env("FVMM_SIM_SEEDS").value_or(seeds.count) + seeds.shards - 1) / seeds.shards;
  const std::uint64_t first = 1 + shard * each;
  std::map<std::string, int> results;
  (void)play(first);  // what is made once and kept
  const auto descriptors = sim_open_descriptors();
  for (std::uint64_t seed = first; seed < first + each; ++seed) {
    const auto outcome = play(seed);
    ++results[outcome.result];
    EXPECT_EQ(outcome.violation, "") << "play it again with FVMM_SIM_SEED=" << seed << " bin/" << seeds.program
                                     << " --gtest_filter='*Promise*/0'";
  }
  EXPECT_EQ(sim_open_descriptors(), descriptors) << "a descriptor is left open";
  std::printf("seeds %llu to %llu:", static_cast<unsigned long long>(first),
              static_cast<unsigned long long>(first + each - 1));
  for (const auto& [result, count] : results) std::printf(" %s %d", result.c_str(), count);
  std::printf("\n");
  if (each < 100) return;
  for (const char* result : mixture) EXPECT_GT(results[result], 0) << "the mixture shall have some of each: " << result;
}

}  // namespace fvmm::testing
