// What one seed of a replication does: its shape, and what goes wrong in it.
#pragma once

#include <array>
#include <vector>

#include "support/sim_plan.h"

namespace fvmm::testing {

struct SimReplicaPlan {
  bool on_template = true;
  unsigned pages_per_step = 3;
  std::uint64_t pages_written = 200;
  unsigned guest_pause = 3;  // the guest takes a step at one in so many moments
  std::chrono::milliseconds interval{20};
  std::uint64_t dirty_pages_max = 0;
  std::uint64_t bandwidth_bytes_s = 0;
  std::uint64_t generations = 4;                    // wanted, sealed, before everything is healed
  std::array<std::array<SimScript, 2>, 8> links{};  // by connection, forward and backward; later ones are whole
  unsigned unreachable_from = ~0U;
  unsigned unreachable_to = ~0U;
  std::vector<SimDeath> deaths;
  int full_from = 0;  // numbers of steps of the peer's disk that need room
  int full_to = 0;
  SimTime recover_at = kSimNever;
  bool source_silent = false;       // its daemon does not answer the peer's question: somebody vouches for its death
  bool peer_lacks_backend = false;  // until all is healed: a recovery is refused once its source has been asked
  SimTime restart_at = kSimNever;   // `replicate stop`, and start again
  bool cut_power_at_end = false;    // of the peer, when all is quiet
  SimPlant plant = SimPlant::kNone;
};

namespace sim_plan_detail {

inline void spoil_link(SimReplicaPlan& plan, Dice& dice) {
  SimScript& script = plan.links[dice.below(3)][dice.below(2)];
  const bool early = dice.one_in(3);
  switch (dice.below(5)) {
    case 0:
      script.cut_at = dice.any_size(early ? 2'000 : 600'000);
      return;
    case 1:
      script.stall_at = dice.any_size(early ? 2'000 : 600'000);
      script.stall_for = dice.any_wait();
      return;
    case 2:
      script.late_message = dice.below(30);
      script.late_for = dice.any_wait();
      return;
    case 3:
      script.repeated_message = dice.below(20);
      script.repeated_after = dice.one_in(2) ? 0 : dice.any_wait();
      return;
    default:
      plan.unreachable_from = static_cast<unsigned>(dice.below(4));
      plan.unreachable_to = plan.unreachable_from + 1 + static_cast<unsigned>(dice.below(10));
  }
}

inline void spoil(SimReplicaPlan& plan, Dice& dice) {
  switch (dice.below(12)) {
    case 0:
    case 1:
    case 2:  // the peer, often in the middle of its store's work
      plan.deaths.push_back({2, 1 + static_cast<int>(dice.one_in(3) ? dice.any_size(1'000) : dice.below(400)),
                             !dice.one_in(3), dice.any_wait()});
      return;
    case 3:
      plan.deaths.push_back({1, 1 + static_cast<int>(dice.any_size(1'500)), dice.one_in(2), dice.any_wait()});
      return;
    case 4:
      plan.full_from = 1 + static_cast<int>(dice.below(150));
      plan.full_to = plan.full_from + static_cast<int>(dice.any_size(60));
      if (dice.one_in(3)) {  // and then, while what failed is tried again, the end of its power
        plan.deaths.push_back({2, plan.full_from + static_cast<int>(dice.below(200)), true, dice.any_wait()});
      }
      return;
    case 5:
    case 6:
      plan.recover_at = static_cast<SimTime>(1 + dice.any_size(2'000)) * kSimMs;
      plan.source_silent = dice.one_in(2);
      return;
    case 7:
      plan.restart_at = static_cast<SimTime>(1 + dice.any_size(1'000)) * kSimMs;
      return;
    default:
      return spoil_link(plan, dice);
  }
}

}  // namespace sim_plan_detail

inline SimReplicaPlan sim_replica_plan(std::uint64_t seed, SimPlant plant = SimPlant::kNone) {
  sim_plan_detail::Dice dice{std::mt19937_64(seed * 31 + 7)};
  SimReplicaPlan plan;
  plan.plant = plant;
  plan.peer_lacks_backend = seed % 5 == 4;
  plan.on_template = !dice.one_in(3);
  plan.pages_per_step = static_cast<unsigned>(dice.below(4));
  constexpr std::array<std::uint64_t, 3> kWindows{40, 120, 400};
  plan.pages_written = kWindows.at(dice.below(kWindows.size()));
  plan.guest_pause = 1 + static_cast<unsigned>(dice.below(6));
  constexpr std::array kIntervals{5, 20, 20, 100, 1000};
  plan.interval = std::chrono::milliseconds(kIntervals.at(dice.below(kIntervals.size())));
  if (dice.one_in(8)) plan.dirty_pages_max = 1 + dice.below(60);
  if (dice.one_in(8)) plan.bandwidth_bytes_s = 1'000'000 + dice.below(100'000'000);
  plan.generations = dice.one_in(40) ? 22 : 2 + dice.below(4);  // 22: the chain at the peer is squashed
  for (auto& link : plan.links) {
    for (SimScript& way : link) {
      way.latency = 1'000 + static_cast<SimTime>(dice.any_size(8 * kSimMs));
      way.step_max = 4'096 << dice.below(6);
    }
  }
  plan.cut_power_at_end = dice.one_in(2);
  constexpr std::array kFaults{0, 1, 1, 1, 2, 2, 3, 4};
  for (int i = kFaults.at(dice.below(kFaults.size())); i > 0; --i) sim_plan_detail::spoil(plan, dice);
  return plan;
}

}  // namespace fvmm::testing
