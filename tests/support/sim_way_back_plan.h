// What one seed of a way back does: the trips of a VM between two hosts, and what goes wrong after one of them.
#pragma once

#include <array>
#include <vector>

#include "support/sim_plan.h"

namespace fvmm::testing {

struct SimWayBackPlan {
  migration::Mode mode = migration::Mode::kSuspend;
  unsigned connections = 1;
  unsigned pages_per_step = 3;
  std::uint64_t pages_written = 200;
  unsigned guest_pause = 3;  // the guest takes a step at one in so many moments
  unsigned steps_before = 4;
  unsigned trips = 2;  // there, and back, and there again
  SimTime latency = 50'000;

  // Of one trip, once the guest runs at its destination:
  unsigned disturbed = 0;
  std::array<SimScript, 2> control{};  // forward: SETTLED and WAY_BACK_KEPT; backward: STARTED and WAY_BACK
  std::vector<SimDeath> deaths;        // host 1: the side that it left; 2: where it is
  int full_from = 0;                   // numbers of steps of the source's disk that need room
  int full_to = 0;
  SimTime disk_step = 0;  // a step of that disk takes up to so long
  SimTime busy_for = 0;   // another command has the guest
  bool torn = false;      // a page of what left changes, and nobody marks it
  bool faults = false;    // any of these

  bool cut_power_at_end = false;  // of the side that it left, after every trip
  SimPlant plant = SimPlant::kNone;
};

namespace sim_plan_detail {

/// A message of the talk, or one just before it, is cut at any byte, late, or comes twice.
inline void spoil_talk(SimWayBackPlan& plan, Dice& dice) {
  const std::size_t way = dice.below(2);
  SimScript& script = plan.control[way];
  const std::uint64_t message = (way == 0 ? 4 : 3) - (dice.one_in(4) ? 1 : 0);
  switch (dice.below(5)) {
    case 0:
    case 1:
      script.cut_message = message;
      script.cut_message_at = dice.one_in(3) ? 0 : dice.any_size(400);
      return;
    case 2:
      script.late_message = message;
      script.late_for = dice.one_in(4) ? 700'000 * kSimMs : dice.any_wait();  // past the longest of all waits, too
      return;
    case 3:
      script.repeated_message = message;
      script.repeated_after = dice.one_in(2) ? 0 : dice.any_wait();
      return;
    default:
      script.stall_at = dice.any_size(4'000);
      script.stall_for = dice.any_wait();
  }
}

inline void spoil(SimWayBackPlan& plan, Dice& dice) {
  plan.faults = true;
  const std::uint64_t longer = plan.trips > 3 ? 3 : 1;  // a squash follows the seal
  switch (dice.below(12)) {
    case 0:
    case 1:
    case 2:  // the side that seals, often in the middle of that
      plan.deaths.push_back({1, 1 + static_cast<int>(dice.one_in(3) ? dice.any_size(200) : dice.below(50 * longer)),
                             !dice.one_in(3), dice.any_wait()});
      return;
    case 3:
      plan.full_from = 1 + static_cast<int>(dice.below(25 * longer));
      plan.full_to = plan.full_from + static_cast<int>(dice.any_size(30));
      return;
    case 4:
      plan.disk_step = (dice.one_in(2) ? 100 : 60'000) * kSimMs;
      return;
    case 5:
      plan.busy_for = dice.any_wait();
      return;
    case 6:
      plan.torn = true;
      return;
    case 7:
      plan.deaths.push_back({2, 1 + static_cast<int>(dice.below(16)), !dice.one_in(3), dice.any_wait()});
      return;
    default:
      return spoil_talk(plan, dice);
  }
}

}  // namespace sim_plan_detail

inline SimWayBackPlan sim_way_back_plan(std::uint64_t seed, SimPlant plant = SimPlant::kNone) {
  sim_plan_detail::Dice dice{std::mt19937_64(seed * 37 + 11)};
  SimWayBackPlan plan;
  plan.plant = plant;
  plan.mode = dice.one_in(2) ? migration::Mode::kSuspend : migration::Mode::kLive;
  plan.connections = 1 + static_cast<unsigned>(dice.below(2));
  plan.pages_per_step = static_cast<unsigned>(dice.below(5));
  constexpr std::array<std::uint64_t, 3> kWindows{40, 120, 400};
  plan.pages_written = kWindows.at(dice.below(kWindows.size()));
  plan.guest_pause = 1 + static_cast<unsigned>(dice.below(6));
  plan.steps_before = static_cast<unsigned>(dice.below(12));
  const bool squashes = dice.one_in(30);
  plan.trips = squashes ? 9 : 2 + static_cast<unsigned>(dice.below(2));
  plan.latency = 1'000 + static_cast<SimTime>(dice.any_size(8 * kSimMs));
  plan.disturbed = squashes ? 6 + static_cast<unsigned>(dice.below(2)) : static_cast<unsigned>(dice.below(plan.trips));
  if (plant != SimPlant::kNone) {  // to be found by the promises of the talk: the trip back would find it, too
    plan.trips = 1;
    plan.disturbed = 0;
  }
  plan.cut_power_at_end = dice.one_in(2);
  constexpr std::array kFaults{0, 1, 1, 1, 2, 2, 3};
  for (int i = kFaults.at(dice.below(kFaults.size())); i > 0; --i) sim_plan_detail::spoil(plan, dice);
  return plan;
}

}  // namespace fvmm::testing
