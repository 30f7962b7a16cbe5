// SimDaemonWorld: the worker processes, and fvmmd's calls to them. Part of support/sim_daemon_world.h.
#pragma once

#include <fmt/format.h>

#include "support/sim_daemon_world.h"

namespace fvmm::testing {

/// While it lives, the calling thread is one of the worker's: a call is carried out where it is made.
class SimInWorker {
 public:
  explicit SimInWorker(const SimWorker& worker) : host_(sim_self->host), epoch_(sim_self->epoch) {
    sim_self->host = worker.host;
    sim_self->epoch = worker.epoch;
  }
  ~SimInWorker() {
    sim_self->host = host_;
    sim_self->epoch = epoch_;
  }
  SimInWorker(const SimInWorker&) = delete;
  SimInWorker& operator=(const SimInWorker&) = delete;
  SimInWorker(SimInWorker&&) = delete;
  SimInWorker& operator=(SimInWorker&&) = delete;

 private:
  const int host_;
  const int epoch_;
};

/// The calls of worker.proto that a migration and its settlement need.
class SimWorkerCalls final : public daemon::WorkerClient {
 public:
  SimWorkerCalls(SimDaemonWorld& world, std::shared_ptr<SimWorker> worker)
      : WorkerClient("/sim/worker.sock"), world_(world), worker_(std::move(worker)) {}

  Result<v1::WorkerInfo> info(const Deadline&) const override {
    return call([this] { return Result<v1::WorkerInfo>(worker_->info); });
  }
  Result<v1::SessionAnswer> ask_session(const v1::SessionQuery& query, const Deadline&) const override {
    return call([&] { return Result<v1::SessionAnswer>(world_.answer_of_worker(*worker_, query.session())); });
  }
  Result<v1::WorkerInfo> settle(bool resume, const Deadline&) const override {
    return call([&] { return world_.settle_worker(*worker_, resume); });
  }
  Status stop(const Deadline&) const override {
    const auto stopped = call([this] {
      world_.die(worker_->host);
      return Result<v1::WorkerInfo>(worker_->info);
    });
    return stopped ? Status() : Status(stopped.error());
  }
  Status migrate(const v1::WorkerMigrateRequest& request, daemon::StopSignal&, const Deadline&,
                 const std::function<bool(const v1::MigrateEvent&)>& event) const override {
    const auto result = call([&] { return Result<v1::MigrateResult>(world_.migrate_away(*worker_, request)); });
    if (!result) return result.error();
    v1::MigrateEvent last;
    *last.mutable_result() = *result;
    (void)event(last);
    return {};
  }
  /// Every report, and the end of the process.
  Status watch(daemon::StopSignal& stop, const Deadline& deadline,
               const std::function<bool(const v1::WorkerInfo&)>& event) const override {
    const SimWorker& worker = *worker_;
    const daemon::StopSignal::Guard guard(stop, [&worker] { SimScheduler::current->notify(&worker, true); });
    for (int told = -1;;) {
      world_.alive();
      if (worker.dead) return Error(Errc::kUnavailable, "sim: the worker is gone");
      if (stop.fired()) return Error(Errc::kCancelled, "sim: fvmmd stops");
      if (told != worker.version) {
        told = worker.version;
        if (!event(worker.info)) return {};
        continue;
      }
      if (deadline.passed()) return Error(Errc::kDeadlineExceeded, "sim: watch");
      SimScheduler::current->block(&worker, std::chrono::nanoseconds(deadline.at().time_since_epoch()).count());
    }
  }

 private:
  template <class Work>
  auto call(Work work) const -> decltype(work()) {
    world_.alive();
    try {
      const SimInWorker here(*worker_);
      world_.alive();
      auto done = work();
      world_.alive();
      return done;
    } catch (const SimKilled&) {
    }
    world_.alive();  // the caller may be dead, too
    return Error(Errc::kUnavailable, "sim: the worker is gone");
  }

  SimDaemonWorld& world_;
  const std::shared_ptr<SimWorker> worker_;
};

class SimWorkerProcess final : public daemon::WorkerProcess {
 public:
  SimWorkerProcess(SimDaemonWorld& world, std::shared_ptr<SimWorker> worker)
      : WorkerProcess(worker->info.pid(), UniqueFd(), "/sim/worker.sock", {kSimRamBytes, 1}),
        world_(world),
        worker_(std::move(worker)) {}
  [[nodiscard]] std::unique_ptr<daemon::WorkerClient> client() const override {
    return std::make_unique<SimWorkerCalls>(world_, worker_);
  }
  bool wait_exit(const Deadline& deadline) override {
    while (!worker_->dead && !deadline.passed()) {
      SimScheduler::current->block(worker_.get(), std::chrono::nanoseconds(deadline.at().time_since_epoch()).count());
      world_.alive();
    }
    return worker_->dead;
  }
  void kill() override {
    if (!worker_->dead) world_.die(worker_->host);
  }
  std::string how_it_ended() override { return "its worker was killed by the plan"; }
  void remove_files() const override {}
  [[nodiscard]] SimWorker& worker() const { return *worker_; }

 private:
  SimDaemonWorld& world_;
  const std::shared_ptr<SimWorker> worker_;
};

inline std::shared_ptr<SimWorker> SimDaemonWorld::new_worker(int host) {
  auto worker = std::make_shared<SimWorker>();
  worker->host = host;
  worker->epoch = processes_.at(host).epoch;
  worker->info.set_pid(++pids_);
  worker->info.mutable_shape()->set_memory_bytes(kSimRamBytes);
  worker->vm_directory = directories_.at(host) / "vms" / Id::from_bytes(config_.id())->hex();
  worker->journal = std::make_unique<migration::FileJournal>(worker->vm_directory);
  workers_.at(host) = worker;
  return worker;
}

inline std::unique_ptr<migration::Guest> SimDaemonWorld::make_guest(SimWorker& worker, const v1::VmConfig& config,
                                                                    const v1::TemplateRef& base,
                                                                    SimMachineFaults faults) {
  auto made = std::make_unique<SimMachine>(
      seed_, plan_, faults,
      SimMachine::Hooks{.alive = [this] { alive(); },
                        .starting = [this, &worker](SimMachine& machine) { on_start(worker, machine); },
                        .gone =
                            [&worker](SimMachine& machine) {
                              if (worker.machine == &machine) worker.machine = nullptr;
                            }});
  auto guest = guest_around(config, base, std::move(made));
  worker.machine = &sim_machine(*guest);
  return guest;
}

inline void SimDaemonWorld::report(SimWorker& worker, v1::VmState state, const std::string& detail) {
  worker.info.set_state(state);
  worker.info.set_detail(detail);
  ++worker.version;
  world().notify(&worker, true);
}

/// Worker::migrate_guest().
inline v1::MigrateResult SimDaemonWorld::migrate_away(SimWorker& worker, const v1::WorkerMigrateRequest& request) {
  class ToPeer final : public migration::Transport {
   public:
    explicit ToPeer(SimDaemonWorld& world) : world_(world) {}
    Result<std::unique_ptr<net::Stream>> connect(const Deadline& deadline) override {
      return world_.connect(2, deadline);
    }

   private:
    SimDaemonWorld& world_;
  };
  migration::SourceOptions options;
  options.mode = plan_.mode;
  options.peer = request.request().to();
  options.from = request.from();
  options.connections = plan_.connections;
  options.max_downtime = plan_.max_downtime;
  options.timeout = plan_.timeout;
  options.bandwidth_bytes_s = plan_.bandwidth_bytes_s;
  options.allow_throttle = plan_.allow_throttle;
  options.on_step = [this](std::string_view step) { return on_step(1, step); };
  worker.before_migration = worker.info.state();
  report(worker, v1::VM_MIGRATING);
  ToPeer transport(*this);
  const auto session =
      std::make_shared<migration::SourceSession>(*worker.guest, std::move(options), transport, *worker.journal);
  session_ = session->id().raw();
  worker.source = session;
  const v1::MigrateResult result = session->run();
  alive();
  worker.left = {session->id(), session->state()};
  worker.source.reset();
  if (session->state() == S::kDone) {
    worker.info.set_moved_to(request.request().to());
    report(worker, v1::VM_MOVED);
  } else if (session->state() == S::kUnknown) {
    report(worker, v1::VM_UNSETTLED, "the peer may run it");
  } else {
    report(worker, worker.before_migration, result.error());
  }
  return result;
}

/// Worker::receive_guest().
inline Status SimDaemonWorld::come_in(SimWorker& worker, const v1::PeerHello& hello,
                                      std::unique_ptr<net::Stream> stream) {
  migration::DestinationSession::Environment environment;
  environment.make_guest = [this, &worker](const v1::PeerHello& incoming) -> Result<std::unique_ptr<migration::Guest>> {
    alive();
    return make_guest(worker, incoming.vm(), incoming.template_(),
                      {.load = plan_.load_fails, .start = plan_.start_fails, .start_takes = plan_.start_takes});
  };
  environment.journal = worker.journal.get();
  environment.on_step = [this](std::string_view step) { return on_step(2, step); };
  environment.boot_id = "peer-boot";
  environment.on_started = [this, &worker](migration::Guest& guest) {
    if (worker.info.state() == v1::VM_INCOMING) {
      report(worker, guest.machine->paused() ? v1::VM_PAUSED : v1::VM_RUNNING);
    }
  };
  *worker.info.mutable_config() = hello.vm();
  worker.info.set_fencing_token(hello.fencing_token());
  report(worker, v1::VM_INCOMING);
  const auto session =
      std::make_shared<migration::DestinationSession>(hello, std::move(stream), std::move(environment));
  worker.destination = session;
  auto guest = session->run();
  alive();
  if (!guest) {
    report(worker, v1::VM_FAILED, guest.error().message());
    return guest.error();
  }
  worker.guest = std::move(*guest);
  return {};
}

/// Worker::ask_session().
inline v1::SessionAnswer SimDaemonWorld::answer_of_worker(SimWorker& worker, const std::string& id) {
  if (worker.source && worker.source->id().raw() == id) return migration::answer_of(worker.source->state());
  if (worker.left && worker.left->first.raw() == id) return migration::answer_of(worker.left->second);
  const auto session = worker.destination;
  if (session && session->id().raw() == id) return session->answer();
  v1::SessionAnswer unknown;
  unknown.set_outcome("unknown");
  return unknown;
}

/// Worker::settle().
inline Result<v1::WorkerInfo> SimDaemonWorld::settle_worker(SimWorker& worker, bool resume) {
  const v1::VmState state = worker.info.state();
  const bool runs = resume && (state == v1::VM_RUNNING || state == v1::VM_PAUSED);
  if (!worker.guest || (state != v1::VM_UNSETTLED && !runs)) {
    return Error(Errc::kFailedPrecondition, "nothing is unsettled here");
  }
  auto record = FVMM_TRY(migration::read_session_record(worker.vm_directory));
  record.set_outcome(resume ? v1::OUTCOME_ABORTED : v1::OUTCOME_STARTED);
  FVMM_TRY(worker.journal->write(record));
  if (runs) return worker.info;
  if (!resume) {
    report(worker, v1::VM_MOVED);
    return worker.info;
  }
  report(worker, worker.before_migration);
  FVMM_TRY(worker.guest->machine->resume());
  return worker.info;
}

inline Status SimDaemonWorld::on_step(int host, std::string_view name) {
  trace(host, name);
  alive();
  if (steps_.at(host)++ == plan_.failing_step.at(host)) return Error(Errc::kAborted, "sim: this step fails");
  return {};
}

}  // namespace fvmm::testing
