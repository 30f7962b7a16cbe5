// One seed of a migration between two fvmmds, played: `FVMM_SIM_SEED=N` is the whole of a failure. Include in one file
// of a program.
#pragma once

#include "support/sim_daemon_world.h"
#include "support/sim_file_calls.h"
#include "support/sim_run.h"
#include "support/temp_dir.h"

namespace fvmm::testing {

/// Plays a seed to its end. Nothing of it is left in this process, or in its directory: that is checked, too.
inline SimOutcome sim_daemon_play(std::uint64_t seed, SimPlant plant = SimPlant::kNone) {
  spdlog::set_level(sim_env("FVMM_SIM_SEED") ? spdlog::level::info : spdlog::level::off);
  const TempDir directory(sim_files_parent());
  for (const char* host : {"1", "2"}) std::filesystem::create_directory(directory.path() / host);
  SimFiles source(directory.path() / "1", {1, 3});
  SimFiles destination(directory.path() / "2", {2, 4});
  SimScheduler scheduler(seed);
  SimOutcome outcome;
  sim_run(scheduler, [&] {
    SimDaemonWorld world(seed, sim_plan(seed, plant), {nullptr, &source, &destination}, directory.path());
    world.run();
    outcome.violation = world.violation();
    outcome.result = world.result();
    outcome.reason = world.reason();
  });
  return sim_ended(outcome, scheduler);
}

}  // namespace fvmm::testing
