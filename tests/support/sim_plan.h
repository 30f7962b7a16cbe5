// What one seed does: the shape of the migration, and what goes wrong in it.
#pragma once

#include <array>
#include <random>
#include <vector>

#include "migration/source.h"
#include "support/sim_net.h"

namespace fvmm::testing {

/// Faults of ours in the hosts and machines around the sessions: a simulation that does not find them is worth nothing.
enum class SimPlant {
  kNone,
  kLateClear,       // a page's dirty bit is cleared after the page may have been read
  kLateCommit,      // a question is answered "refused" without the session knowing: it takes a COMMIT that comes later
  kDeviceMarkLost,  // some writes by devices leave no mark
  kHarvestBeforeSave,  // what saving the state writes to memory is not in the last harvest
  kUncommittedStart,   // a replica runs as soon as it is whole
  kRefusalNotDurable,  // a refusal is spoken, and not yet on the disk
  // Of replication:
  kUnsealedStarted,    // a boot takes what a dead writer left for a generation
  kAckBeforeSealed,    // SEALED is said when the generation is only held
  kSealNotDurable,     // the store's fsync does nothing
  kFencingNotDurable,  // the record of a recovery is not synced
  // Of the way back:
  kLogReadEarly,    // what the log says of a page is older than what is hashed of it
  kCompareSkipped,  // the source keeps what left without asking whether the peer has the same
  // Of the registry:
  kVmRecordNotDurable,  // what the destination writes of a VM that comes in is not synced
};

inline constexpr std::uint64_t kSimPagesWritten = 1200;  // three shards' worth; the rest stays as the template has it
inline constexpr int kSimFullForGood = 1'000'000;        // until its operator makes room, at the end

/// The end of one host's process, at its n-th action: a read, a write, a step.
struct SimDeath {
  int host;
  int at_action;
  bool power;  // of the whole host, which comes back
  SimTime back_after;
};

struct SimPlan {
  migration::Mode mode = migration::Mode::kSuspend;
  unsigned connections = 1;
  bool on_template = true;
  unsigned pages_per_step = 3;
  std::uint64_t pages_written = kSimPagesWritten;  // the guest's window; at most that
  unsigned steps_before = 4;
  unsigned guest_pause = 3;  // the guest takes a step at one in so many moments
  std::chrono::microseconds max_downtime{1'000'000};
  std::chrono::milliseconds timeout{60'000};
  std::uint64_t bandwidth_bytes_s = 0;
  bool allow_throttle = false;
  std::array<std::array<SimScript, 2>, 8> links{};  // by connection, forward and backward; later ones are whole
  unsigned unreachable_from = ~0U;                  // connections that cannot be made
  unsigned unreachable_to = ~0U;
  std::vector<SimDeath> deaths;
  std::array<int, 3> failing_step{-1, -1, -1};  // by host: this step of the session fails
  std::array<int, 3> full_from{};               // by host: numbers of writes to its disk
  std::array<int, 3> full_to{};
  bool pause_fails = false;
  bool save_fails = false;
  bool load_fails = false;
  bool start_fails = false;
  SimTime start_takes = 0;                                            // of the replica, after COMMIT
  std::array<SimTime, 3> cancel_at{kSimNever, kSimNever, kSimNever};  // by host
  std::vector<SimTime> questions;                                     // by somebody, about the session
  SimPlant plant = SimPlant::kNone;
};

namespace sim_plan_detail {

struct Dice {
  std::mt19937_64 random;
  bool one_in(unsigned n) { return random() % n == 0; }
  std::uint64_t below(std::uint64_t n) { return random() % n; }
  /// As likely between 1 and 2 as between 1000 and 2000 units.
  std::uint64_t any_size(std::uint64_t most) {
    std::uint64_t bits = 1;
    while ((std::uint64_t{1} << bits) < most) ++bits;
    return random() % (std::uint64_t{1} << (1 + random() % bits)) % most;
  }
  SimTime any_wait() {  // around the sessions' own limits, too
    constexpr std::array<SimTime, 8> kWaits{1, 100, 2'000, 4'500, 9'900, 12'000, 16'000, 40'000};
    return kWaits[below(kWaits.size())] * kSimMs + static_cast<SimTime>(below(2 * kSimMs));
  }
};

inline void spoil_links(SimPlan& plan, Dice& dice) {
  const unsigned number = dice.one_in(2) ? 0 : static_cast<unsigned>(dice.below(6));
  SimScript& script = plan.links[number][dice.below(2)];
  switch (dice.below(5)) {
    case 0:
      script.cut_at = dice.any_size(number == 0 ? 2'000 : 400'000);
      break;
    case 1:
      script.stall_at = dice.any_size(number == 0 ? 2'000 : 400'000);
      script.stall_for = dice.any_wait();
      break;
    case 2:
      script.late_message = dice.below(number == 0 ? 4 : 20);
      script.late_for = dice.any_wait();
      break;
    case 3:
      plan.links[0][dice.below(2)].repeated_message = dice.below(4);
      for (SimScript& way : plan.links[0]) way.repeated_after = dice.one_in(2) ? 0 : dice.any_wait();
      break;
    default:
      plan.unreachable_from = 1 + static_cast<unsigned>(dice.below(6));
      plan.unreachable_to = dice.one_in(2) ? ~0U : plan.unreachable_from + 1 + static_cast<unsigned>(dice.below(40));
  }
}

/// Around COMMIT: a message of the last six is late, comes twice, or is the connection's end; perhaps nobody can ask.
inline void spoil_hand_over(SimPlan& plan, Dice& dice) {
  const std::size_t way = dice.below(2);
  SimScript& script = plan.links[0][way];
  const std::uint64_t message = 1 + dice.below(way == 0 ? 3 : 2);  // STATE, COMMIT, SETTLED; PREPARED, STARTED
  switch (dice.below(3)) {
    case 0:
      script.cut_message = message;
      script.cut_message_at = dice.one_in(2) ? 0 : dice.below(120);
      break;
    case 1:
      script.late_message = message;
      script.late_for = dice.any_wait();
      break;
    default:
      script.repeated_message = message;
      script.repeated_after = dice.any_wait();
  }
  if (dice.one_in(2)) return;
  plan.unreachable_from = plan.connections + 1;
  plan.unreachable_to = dice.one_in(2) ? ~0U : plan.unreachable_from + 1 + static_cast<unsigned>(dice.below(60));
}

inline void spoil(SimPlan& plan, Dice& dice) {
  const int host = 1 + static_cast<int>(dice.below(2));
  switch (dice.below(16)) {
    case 0:
    case 1:
      plan.deaths.push_back({host, 1 + static_cast<int>(dice.one_in(3) ? dice.any_size(1'000) : dice.below(120)),
                             dice.one_in(2), dice.any_wait()});
      break;
    case 2:
      plan.full_from.at(host) = 1 + static_cast<int>(dice.below(3));
      plan.full_to.at(host) = plan.full_from.at(host) + static_cast<int>(dice.below(4));
      if (plan.full_to.at(host) - plan.full_from.at(host) == 3) plan.full_to.at(host) = kSimFullForGood;
      break;
    case 3:
      plan.failing_step.at(host) = static_cast<int>(dice.below(18));
      break;
    case 4:
      (dice.one_in(4)   ? plan.pause_fails
       : dice.one_in(3) ? plan.save_fails
       : dice.one_in(2) ? plan.load_fails
                        : plan.start_fails) = true;
      break;
    case 5:
      (dice.one_in(2) ? plan.cancel_at.at(host) : plan.questions.emplace_back()) =
          static_cast<SimTime>(dice.any_size(40'000)) * 1'000;
      break;
    case 13:  // a refusal after COMMIT that cannot be written, perhaps until it is asked for
      plan.start_fails = true;
      plan.full_from[2] = 2;
      plan.full_to[2] = 2 + static_cast<int>(dice.below(3));
      break;
    case 14:  // somebody asks while the start is under way
      plan.start_takes = dice.any_wait();
      plan.questions.push_back(static_cast<SimTime>(dice.below(40)) * kSimMs);
      break;
    case 15:  // or before the destination is ready
      plan.questions.push_back(static_cast<SimTime>(dice.below(6'000)) * 1'000);
      break;
    case 6:
    case 7:
    case 8:
      return spoil_hand_over(plan, dice);
    default:
      return spoil_links(plan, dice);
  }
}

}  // namespace sim_plan_detail

inline SimPlan sim_plan(std::uint64_t seed, SimPlant plant = SimPlant::kNone) {
  sim_plan_detail::Dice dice{std::mt19937_64(seed)};
  SimPlan plan;
  plan.plant = plant;
  constexpr std::array kModes{migration::Mode::kSuspend, migration::Mode::kLive, migration::Mode::kSuspend,
                              migration::Mode::kLive, migration::Mode::kPrecopy};
  plan.mode = kModes.at(dice.below(kModes.size()));
  plan.connections = 1 + static_cast<unsigned>(dice.below(3));
  plan.on_template = plan.mode != migration::Mode::kPrecopy && !dice.one_in(3);
  plan.pages_per_step = static_cast<unsigned>(dice.below(5));
  plan.steps_before = static_cast<unsigned>(dice.below(12));
  plan.guest_pause = 1 + static_cast<unsigned>(dice.below(6));
  constexpr std::array kDowntimes{1, 1'600, 3'000, 20'000, 1'000'000};
  plan.max_downtime = std::chrono::microseconds(kDowntimes.at(dice.below(kDowntimes.size())));
  if (dice.one_in(8)) plan.timeout = std::chrono::milliseconds(1 + dice.any_size(8'000));
  if (dice.one_in(8)) plan.bandwidth_bytes_s = 1'000'000 + dice.below(100'000'000);
  plan.allow_throttle = dice.one_in(2);
  for (auto& link : plan.links) {
    for (SimScript& way : link) {
      way.latency = 1'000 + static_cast<SimTime>(dice.any_size(8 * kSimMs));
      way.step_max = 4'096 << dice.below(6);
    }
  }
  constexpr std::array kFaults{0, 1, 1, 1, 2, 2, 3, 4};
  for (int i = kFaults.at(dice.below(kFaults.size())); i > 0; --i) sim_plan_detail::spoil(plan, dice);
  return plan;
}

}  // namespace fvmm::testing
