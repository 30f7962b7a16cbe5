// One host's disk in simulation: what was written, and what of it is still there after the power was lost.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "migration/record.h"
#include "support/sim_scheduler.h"

namespace fvmm::testing {

/// What a planted fault does to a disk; nothing in a clean run.
struct SimDiskPlant {
  bool refusal_not_durable = false;  // REFUSED is answered before it is synced
};

/// The VM's session.pb, and the refusals of sessions that nobody here knows.
class SimDisk {
 public:
  explicit SimDisk(int host) : host_(host) {}

  /// Takes its time, fails when the disk is full, and throws when the process was killed meanwhile; then either record
  /// may be there. `alive` as SimStream's.
  Status write(const v1::SessionRecord& record, const std::function<void()>& alive) {
    alive();
    auto& world = *SimScheduler::current;
    inflight_ = record;
    SimTime wait = static_cast<SimTime>(50'000 + world.random() % (4 * kSimMs));
    if (world.chance(40)) wait += static_cast<SimTime>(world.random() % (6000 * kSimMs));  // a disk that thinks
    world.block(this, world.now() + wait);
    alive();
    inflight_.reset();
    ++writes_;
    if (full(writes_)) return Error(Errc::kResourceExhausted, "sim: no space left on the disk");
    seen_ = record;
    const bool lost = plant.refusal_not_durable && record.outcome() == v1::OUTCOME_REFUSED;
    if (!lost) durable_ = record;
    alive();
    return {};
  }
  /// The process died: a write under way has reached the disk, or not.
  void process_died() {
    if (inflight_ && SimScheduler::current->chance(2)) seen_ = durable_ = inflight_;
    inflight_.reset();
  }
  void power_lost() {
    process_died();
    seen_ = durable_;
  }
  /// At once: fvmmd admits no session meanwhile.
  Status refuse_unknown(const std::string& session) {
    if (full(++writes_)) return Error(Errc::kResourceExhausted, "sim: no space left on the disk");
    refused_.insert_or_assign(session, true);
    return {};
  }
  /// By fvmmd, at once: it writes little, and nobody else writes meanwhile.
  Status close(v1::SessionOutcome outcome) {
    if (full(++writes_)) return Error(Errc::kResourceExhausted, "sim: no space left on the disk");
    set(outcome);
    return {};
  }
  [[nodiscard]] bool refused_unknown(const std::string& session) const { return refused_.contains(session); }
  [[nodiscard]] const std::optional<v1::SessionRecord>& record() const { return seen_; }
  [[nodiscard]] const std::optional<v1::SessionRecord>& durable() const { return durable_; }
  [[nodiscard]] std::optional<v1::SessionOutcome> outcome() const {
    return seen_ ? std::optional(seen_->outcome()) : std::nullopt;
  }
  /// By the operator, or by a host that cleans up: at once.
  void set(v1::SessionOutcome outcome) {
    if (!seen_) return;
    seen_->set_outcome(outcome);
    durable_ = seen_;
  }
  [[nodiscard]] int host() const { return host_; }

  SimDiskPlant plant;
  int full_from = 0;  // numbers of writes, from 1; 0: never
  int full_to = 0;

 private:
  [[nodiscard]] bool full(int number) const { return full_from != 0 && number >= full_from && number <= full_to; }

  int host_;
  int writes_ = 0;
  std::optional<v1::SessionRecord> inflight_;
  std::optional<v1::SessionRecord> seen_;     // by whoever reads the file
  std::optional<v1::SessionRecord> durable_;  // after the power was lost
  std::map<std::string, bool> refused_;
};

class SimJournal final : public migration::Journal {
 public:
  SimJournal(SimDisk& disk, std::function<void()> alive) : disk_(disk), alive_(std::move(alive)) {}
  Status write(const v1::SessionRecord& record) override { return disk_.write(record, alive_); }

 private:
  SimDisk& disk_;
  std::function<void()> alive_;
};

}  // namespace fvmm::testing
