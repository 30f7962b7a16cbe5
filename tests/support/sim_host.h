// One host of the simulation: a daemon and at most one worker with the VM, on a disk that outlives both.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "migration/destination.h"
#include "migration/source.h"
#include "support/sim_disk.h"
#include "support/sim_machine.h"

namespace fvmm::testing {

enum class SimWord { kNothing, kStarted, kRefused, kUnknown };

inline SimWord sim_word(const v1::SessionAnswer& answer) {
  if (answer.outcome() == "started") return SimWord::kStarted;
  return answer.outcome() == "refused" ? SimWord::kRefused : SimWord::kUnknown;
}

struct SimHost {
  explicit SimHost(int which) : disk(which), number(which) {}

  SimDisk disk;
  const int number;           // 1: the source, 2: the destination
  int epoch = 0;              // which life of the worker
  bool up = true;             // has power
  bool started_cold = false;  // without a worker of before: the VM was booted again, from what this host has
  int deaths = 0;
  int actions = 0;  // of this host's threads: where a plan's death strikes
  int steps = 0;    // of its session
  std::unique_ptr<migration::Guest> guest;
  SimMachine* machine = nullptr;  // of the guest, or of the replica inside a session; null when it is gone
  std::shared_ptr<migration::SourceSession> source;
  std::optional<migration::SourceState> left;  // how the last session of its worker ended; with the worker it goes
  std::shared_ptr<migration::DestinationSession> destination;

  [[nodiscard]] bool runs() const { return started_cold || (machine != nullptr && machine->running()); }
  [[nodiscard]] bool open() const { return disk.outcome() == v1::OUTCOME_OPEN; }
  /// Whether what the disk says lets this host boot the VM, once its worker is dead.
  [[nodiscard]] bool may_boot() const {
    const auto outcome = disk.outcome();
    if (number == 2) return outcome == v1::OUTCOME_STARTED;
    return !outcome || outcome == v1::OUTCOME_ABORTED || outcome == v1::OUTCOME_REFUSED;
  }
  /// A source's living worker knows what its disk may not have taken (daemon: IncomingSessions::answer).
  [[nodiscard]] SimWord word() const {
    if (open() && left) return sim_word(migration::answer_of(*left));
    return word_of_disk();
  }
  /// What a record says without a worker to ask.
  [[nodiscard]] SimWord word_of_disk() const {
    const auto outcome = disk.outcome();
    if (outcome == v1::OUTCOME_STARTED) return SimWord::kStarted;
    if (outcome == v1::OUTCOME_REFUSED || outcome == v1::OUTCOME_ABORTED) return SimWord::kRefused;
    return SimWord::kUnknown;
  }
  /// `migrate resolve` without a force, once the peer has spoken. True: it is settled.
  bool resolve(SimWord peer) {
    if (peer != SimWord::kStarted && peer != SimWord::kRefused) return false;
    const bool ours = (peer == SimWord::kRefused) == (number == 1);
    if (!ours) {
      disk.set(number == 1 ? v1::OUTCOME_STARTED : v1::OUTCOME_REFUSED);
      drop();
    } else if (machine != nullptr) {
      disk.set(number == 1 ? v1::OUTCOME_ABORTED : v1::OUTCOME_STARTED);
      if (!machine->running()) machine->start();
    } else {  // lost: booted again by its user
      disk.set(number == 1 ? v1::OUTCOME_REFUSED : v1::OUTCOME_STARTED);
      started_cold = true;
    }
    return true;
  }
  void drop() {
    if (machine != nullptr) machine->die();
    machine = nullptr;
    left.reset();
    guest.reset();
  }
};

}  // namespace fvmm::testing
