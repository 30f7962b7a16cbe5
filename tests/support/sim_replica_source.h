// SimReplicaWorld: the source's worker, with its guest and its replication. Part of support/sim_replica_world.h.
#pragma once

#include "support/sim_replica_world.h"

namespace fvmm::testing {

class SimReplicaTransport final : public migration::Transport {
 public:
  SimReplicaTransport(SimReplicaWorld& world) : world_(world) {}  // NOLINT(google-explicit-constructor)
  Result<std::unique_ptr<net::Stream>> connect(const Deadline& deadline) override { return world_.connect(deadline); }

 private:
  SimReplicaWorld& world_;
};

inline void SimReplicaWorld::start_guest() {
  auto made = std::make_unique<SimMachine>(
      seed_, sim_guest_plan(plan_), SimMachineFaults{},
      SimMachine::Hooks{.alive = [this] { alive(); },
                        .starting = [this](SimMachine& machine) { remember_instant(machine); },
                        .gone = [this](SimMachine&) { machine_ = nullptr; },
                        .saved = [this](SimMachine& machine) { noted_ = machine.registers()[1]; }});
  guest_ = guest_around(config_, base_, std::move(made));
  machine_ = &sim_machine(*guest_);
  machine_->start();
  for (int i = 0; i < 4; ++i) machine_->step();
}

/// At the end of a pause: all that belongs to the instant has been written.
inline void SimReplicaWorld::remember_instant(SimMachine& machine) {
  if (noted_ != 0) instants_[noted_] = sim_window_hash(machine.memory(), plan_);
  noted_ = 0;
}

inline void SimReplicaWorld::start_replication() {
  migration::ReplicationOptions options;
  options.peer = "peer:7000";
  options.from = "source:7000";
  options.policy.interval = plan_.interval;
  options.policy.dirty_pages_max = plan_.dirty_pages_max;
  options.bandwidth_bytes_s = plan_.bandwidth_bytes_s;
  options.buffer_bytes = migration::kCaptureBufferMin;
  const int epoch = host(1).epoch;
  options.on_step = [this, epoch](std::string_view step) -> Status {
    alive();
    note_sealed(epoch, step == "sealed");
    return {};
  };
  options.on_fenced = [this, epoch]() -> Status {
    if (epoch != host(1).epoch || !source_lives_) return {};  // a dead worker's thread: nothing runs there
    trace(1, "hears FENCED, and stands still");
    FVMM_TRY(guest_->machine->fence("recovered at peer:7000"));
    source_fenced_ = true;
    return {};
  };
  // Its threads belong to the worker.
  sim_self->host = 1;
  sim_self->epoch = epoch;
  auto made = migration::Replication::start(
      std::move(options), [this, epoch](const auto& work) { return with_guest(epoch, work); },
      std::make_unique<SimReplicaTransport>(*this));
  sim_self->host = 0;
  sim_self->epoch = 0;
  FVMM_CHECK(made.ok(), "a replication begins without its peer");
  replication_ = std::move(*made);
}

inline void SimReplicaWorld::stop_replication() {
  if (!replication_) return;
  replication_->stop();
  const v1::ReplicaStatus last = replication_->status();
  expect(last.buffer_bytes() == 0, "a buffer that is not given back");
  expect(last.pages_captured() >= last.pages_sent() && last.pages_sent() >= last.pages_acknowledged(),
         "counters out of order");
  expect(!source_lives_ || guest_->since_generation == nullptr, "the guest collects on");
  replication_.reset();
}

/// A dead worker's threads get nothing in hand, and no error either: they end by themselves.
inline Status SimReplicaWorld::with_guest(int epoch, const std::function<Status(migration::Guest&)>& work) {
  if (epoch != host(1).epoch || !source_lives_) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // others go on meanwhile, and end its connections
    return {};
  }
  const std::lock_guard lock(guest_mutex_);
  if (epoch != host(1).epoch || !source_lives_) return {};  // while it waited
  return work(*guest_);
}

/// SEALED has come, or READY has said that a generation is there.
inline void SimReplicaWorld::note_sealed(int epoch, bool one_more) {
  if (epoch != host(1).epoch || !replication_) return;
  acked_ = std::max(acked_, replication_->status().generation_sealed());
  if (one_more) ++acked_since_;
  if (acked_ == 0) return;
  const std::string name = memory::generation_name(migration::replica_line(config_), acked_);
  expect(published_.contains(name), name + " was acknowledged, and is not sealed");
}

inline Result<std::unique_ptr<net::Stream>> SimReplicaWorld::connect(const Deadline& deadline) {
  alive();
  if (sim_self->epoch != host(1).epoch) return Error(Errc::kUnavailable, "sim: this process is dead");
  const auto number = static_cast<unsigned>(links_.size());
  const bool unreachable = !healed_ && number >= plan_.unreachable_from && number < plan_.unreachable_to;
  if (unreachable || !host(2).up) {
    links_.emplace_back();
    const bool refused = !unreachable || world().chance(2);  // or nobody answers at all
    const SimTime limit = std::chrono::nanoseconds(deadline.at().time_since_epoch()).count();
    if (!refused) world().block(this, limit);
    return Error(refused ? Errc::kUnavailable : Errc::kDeadlineExceeded, "sim: connect");
  }
  const auto link = std::make_shared<SimLink>();
  link->hosts = {1, 2};
  if (number < plan_.links.size() && !healed_) {
    for (std::size_t way = 0; way < 2; ++way) link->directions.at(way).script = plan_.links.at(number).at(way);
  }
  links_.push_back(link);
  auto theirs = std::make_shared<std::unique_ptr<net::Stream>>(
      std::make_unique<SimStream>(link, 1, [this] { alive(); }));  // shared: std::function is copied
  spawn(2, [this, theirs] { serve(std::move(*theirs)); });
  return std::unique_ptr<net::Stream>(std::make_unique<SimStream>(link, 0, [this] { alive(); }));
}

}  // namespace fvmm::testing
