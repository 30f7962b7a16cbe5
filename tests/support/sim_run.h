// One seed, played: `FVMM_SIM_SEED=N` is the whole of a failure. Include in one file of a program (sim_threads.h).
#pragma once

#include <sched.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "support/sim_threads.h"
#include "support/sim_world.h"

namespace fvmm::testing {

struct SimOutcome {
  std::string violation;  // empty: every promise was kept
  std::string result;     // of the source, or "killed"
  std::string reason;     // of a result other than completed
  SimTime ended = 0;
  std::uint64_t switches = 0;
};

/// What every outcome says of a simulation that has ended. `Outcome`: SimOutcome, or one with more in it.
template <class Outcome>
Outcome sim_ended(Outcome outcome, const SimScheduler& scheduler) {
  outcome.ended = scheduler.now() - kSimEpoch;
  outcome.switches = scheduler.switches();
  if (outcome.violation.empty() && SimStream::living != 0) outcome.violation = "a connection is left open";
  if (outcome.violation.empty() && SimMachine::living != 0) outcome.violation = "a machine is left over";
  return outcome;
}

/// Where the files of a seed are: in memory where the host has room for that.
inline std::string sim_files_parent() {
  std::error_code ignored;
  return std::filesystem::is_directory("/dev/shm", ignored) ? "/dev/shm" : "/tmp";
}

inline std::optional<std::uint64_t> sim_env(const char* name) {
  const char* const text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): no thread is running
  return text == nullptr ? std::nullopt : std::optional<std::uint64_t>(std::strtoull(text, nullptr, 0));
}

/// Plays a seed to its end. Nothing of it is left in this process: that is checked, too.
inline SimOutcome sim_play(std::uint64_t seed, const SimPlan& plan) {
  // Thousands of failures, all wanted; of one seed the whole story.
  spdlog::set_level(sim_env("FVMM_SIM_SEED") ? spdlog::level::info : spdlog::level::off);
  SimScheduler scheduler(seed);
  SimOutcome outcome;
  sim_run(scheduler, [&] {
    SimWorld world(seed, plan);
    world.run();
    outcome.violation = world.violation();
    outcome.result = world.result();
    outcome.reason = world.reason();
  });
  return sim_ended(outcome, scheduler);
}

inline SimOutcome sim_play(std::uint64_t seed, SimPlant plant = SimPlant::kNone) {
  return sim_play(seed, sim_plan(seed, plant));
}

/// All threads of a simulation on one CPU: they take turns anyway, and waking one there costs half.
inline void sim_stay_on_one_cpu() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<unsigned>(::sched_getcpu()), &one);
  (void)::sched_setaffinity(0, sizeof one, &one);
}

}  // namespace fvmm::testing
