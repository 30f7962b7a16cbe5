// One seed of a replication, played: `FVMM_SIM_SEED=N` is the whole of a failure. Include in one file of a program.
#pragma once

#include "support/sim_file_calls.h"
#include "support/sim_replica_world.h"
#include "support/sim_run.h"
#include "support/sim_stored_template.h"

namespace fvmm::testing {

struct SimReplicaOutcome {
  std::string violation;  // empty: every promise was kept
  std::string result;     // "fenced", "recovered", "lost"
  std::string reason;     // how many generations were sealed
  std::uint64_t sealed = 0;
  SimTime ended = 0;
  std::uint64_t switches = 0;
};

/// Plays a seed to its end. Nothing of it is left in this process, or in its directory: that is checked, too.
inline SimReplicaOutcome sim_replica_play(std::uint64_t seed, SimPlant plant = SimPlant::kNone) {
  spdlog::set_level(sim_env("FVMM_SIM_SEED") ? spdlog::level::info : spdlog::level::off);
  const SimReplicaPlan plan = sim_replica_plan(seed, plant);
  const TempDir directory(sim_files_parent());
  if (plan.on_template) sim_store_template(directory.path() / "store");
  SimFiles files(directory.path(), {2});
  SimScheduler scheduler(seed);
  SimReplicaOutcome outcome;
  sim_run(scheduler, [&] {
    SimReplicaWorld world(seed, plan, files, directory.path());
    world.run();
    outcome.violation = world.violation();
    outcome.result = world.result();
    outcome.sealed = world.sealed_count();
    outcome.reason = std::to_string(outcome.sealed) + " generations sealed";
  });
  return sim_ended(outcome, scheduler);
}

}  // namespace fvmm::testing
