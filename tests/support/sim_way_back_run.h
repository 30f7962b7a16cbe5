// One seed of a way back, played: `FVMM_SIM_SEED=N` is the whole of a failure. Include in one file of a program.
#pragma once

#include "support/sim_file_calls.h"
#include "support/sim_run.h"
#include "support/sim_stored_template.h"
#include "support/sim_way_back_world.h"

namespace fvmm::testing {

/// Plays a seed to its end. Nothing of it is left in this process, or in its directory: that is checked, too. `result`
/// as SimWayBackWorld's.
inline SimOutcome sim_way_back_play(std::uint64_t seed, SimPlant plant = SimPlant::kNone) {
  spdlog::set_level(sim_env("FVMM_SIM_SEED") ? spdlog::level::info : spdlog::level::off);
  const SimWayBackPlan plan = sim_way_back_plan(seed, plant);
  const TempDir directory(sim_files_parent());
  const std::array<std::filesystem::path, 2> hosts{directory.path() / "1", directory.path() / "2"};
  for (const auto& host : hosts) {
    std::filesystem::create_directory(host);
    sim_store_template(host / "store");
  }
  SimFiles first(hosts[0], {1});
  SimFiles second(hosts[1], {2});
  SimScheduler scheduler(seed);
  SimOutcome outcome;
  sim_run(scheduler, [&] {
    SimWayBackWorld world(seed, plan, {SimWayBackDisk{&first, hosts[0]}, SimWayBackDisk{&second, hosts[1]}});
    world.run();
    outcome.violation = world.violation();
    outcome.result = world.result();
    outcome.reason = world.reason();
  });
  return sim_ended(outcome, scheduler);
}

}  // namespace fvmm::testing
