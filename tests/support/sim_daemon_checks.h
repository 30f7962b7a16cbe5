// SimDaemonWorld: one history, and the promises: at every moment, and when everybody has found a way out. Part of
// support/sim_daemon_world.h.
#pragma once

#include <fmt/format.h>

#include <cstring>

#include "support/sim_daemon_world.h"

namespace fvmm::testing {

inline SimDaemonWorld::SimDaemonWorld(std::uint64_t seed, SimPlan plan, Files files,
                                      const std::filesystem::path& directory)
    : seed_(seed), plan_(std::move(plan)), files_(files), directories_{"", directory / "1", directory / "2"} {
  config_.set_id(std::string(16, 'v'));
  config_.set_name("web1");
  config_.set_memory_bytes(kSimRamBytes);
  config_.set_vcpus(1);
  config_.set_tracking("scan");  // its worker ends when it has left: no way back is sealed here
  if (plan_.on_template) base_.set_id(std::string(16, 't'));
  for (int host = 1; host <= 2; ++host) files_.at(host)->alive = [this] { alive(); };
  const auto vms = directories_[2] / "vms";
  if (plan_.plant == SimPlant::kVmRecordNotDurable) {
    files_[2]->sync_lies = [vms](const std::string& path) { return path.starts_with(vms.native()); };
  }
}

inline SimDaemonWorld::~SimDaemonWorld() = default;

inline void SimDaemonWorld::expect(bool promise, const std::string& what) {
  if (promise || !violation_.empty()) return;
  violation_ = what;
  trace(0, what);
}

/// Never two; the right moves only by COMMIT.
inline void SimDaemonWorld::check_moment() {
  expect(!runs(1) || !runs(2), "two runners");
  const auto& worker = workers_[1];
  if (!worker || worker->dead || !worker->source) return;
  const S now = worker->source->state();
  const bool said = now == S::kCommitting || now == S::kUnknown || now == S::kDone;
  committed_ |= said;
  if (now == S::kAborted && (seen_ == S::kCommitting || seen_ == S::kUnknown)) told("refused");
  expect(!said || !runs(1), "the source runs although it said COMMIT");
  seen_ = now;
}

/// The moment at which a machine's guest begins to run.
inline void SimDaemonWorld::on_start(SimWorker& worker, SimMachine& machine) {
  if (worker.host != 2) return;
  check_moment();
  expect(committed_, "a replica started without COMMIT");
  expect(!told_refused_, "a replica started after its refusal was told");
  dest_ran_ = true;
  const auto& source = workers_[1];
  if (!source || source->machine == nullptr) return;
  expect(!source->machine->running(), "the source runs while the destination starts");
  expect(machine.registers() == source->machine->registers(), "registers differ at the hand-over");
  const auto ours = source->machine->memory().pages({0, kSimPages});
  const auto theirs = machine.memory().pages({0, kSimPages});
  expect(std::memcmp(ours.data(), theirs.data(), ours.size()) == 0, "memory differs at the hand-over");
}

/// The destination has given its word.
inline void SimDaemonWorld::told(const std::string& outcome) {
  trace(2, "told: " + outcome);
  if (outcome == "started") expect(dest_ran_, "\"started\" was said of a guest that never ran");
  if (outcome != "refused") return;
  told_refused_ = true;
  expect(!dest_ran_, "\"refused\" was said of a guest that ran");
}

inline void SimDaemonWorld::order_migration() {
  const auto fvmmd = fvmmds_[1];
  v1::MigrateRequest request;
  request.set_vm(config_.name());
  request.set_to("127.0.0.2:7000");
  const auto ended = fvmmd->migrations->migrate(request, [](const v1::MigrateEvent&) {});
  alive();
  result_ = ended ? ended->result().result() : "refused";
  reason_ = ended ? ended->result().error() : ended.error().message();
}

inline void SimDaemonWorld::run() {
  spawn(1, [this] {
    const auto worker = new_worker(1);
    *worker->info.mutable_config() = config_;
    worker->info.set_fencing_token(1);
    worker->guest = make_guest(*worker, config_, base_, {.pause = plan_.pause_fails, .save = plan_.save_fails});
    worker->machine->start();
    for (unsigned i = 0; i < plan_.steps_before; ++i) worker->machine->step();
    report(*worker, v1::VM_RUNNING);
  });
  wait_for_all();
  for (int host = 1; host <= 2; ++host) spawn(host + 2, [this, host] { boot(host); });  // which finds the worker
  wait_for_all();
  begun_ = true;
  for (int host = 1; host <= 2; ++host) {
    constexpr int kStepsOfARecord = 6;  // that need room: a temporary file, its bytes, its sync and the directory's
    if (plan_.full_from.at(host) == 0) continue;
    files_.at(host)->full_from = 1 + files_.at(host)->steps() + (plan_.full_from.at(host) - 1) * kStepsOfARecord;
    files_.at(host)->full_to = files_.at(host)->steps() + plan_.full_to.at(host) * kStepsOfARecord;
  }
  threads_.emplace_back([this] { start_lost_vms(); });
  spawn(3, [this] { order_migration(); });
  wait_for_all();
  way_out();
  check_end();
  check_refusal_stands();
  stopping_ = true;
  for (int host = 1; host <= 2; ++host) {
    if (const auto fvmmd = std::exchange(fvmmds_.at(host), nullptr)) fvmmd->end();
    if (workers_.at(host) && !workers_.at(host)->dead) die(host);
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  for (auto& worker : workers_) worker.reset();
}

/// The network is whole, the disks have room, the hosts and their fvmmds are up: everything open gets settled.
inline void SimDaemonWorld::way_out() {
  healed_ = true;
  for (int host = 1; host <= 2; ++host) {
    files_.at(host)->full_from = 0;
    if (!fvmmds_.at(host)) begin_fvmmd(host, 0);
  }
  wait_for_all();
  std::this_thread::sleep_for(std::chrono::seconds(30));  // the watches try again
  resolve_all();
  if (unsettled(1) || unsettled(2)) {
    force();
    resolve_all();
  }
  expect(!unsettled(1) && !unsettled(2), "an open session that nothing settles");
  std::this_thread::sleep_for(std::chrono::seconds(30));
}

inline bool SimDaemonWorld::unsettled(int host) {
  const auto& fvmmd = fvmmds_.at(host);
  if (!fvmmd) return true;
  const auto vm = fvmmd->registry->find(*Id::from_bytes(config_.id()));
  return vm && vm->state() == v1::VM_UNSETTLED;
}

inline void SimDaemonWorld::resolve(int host, bool start_here, bool discard) {
  spawn(host + 2, [this, host, start_here, discard] {
    v1::ResolveRequest request;
    request.set_vm(config_.name());
    request.set_force_start_here(start_here);
    request.set_force_discard(discard);
    const auto report = fvmmds_.at(host)->migrations->resolve(request);
    trace(host, "resolve: " + (report ? report->outcome() : report.error().message()));
  });
  wait_for_all();
}

/// Either side may ask while the other is still open.
inline void SimDaemonWorld::resolve_all() {
  for (int pass = 0; pass < 2; ++pass) {
    const int first = seed_ % 2 == 0 ? 1 : 2;
    for (const int host : {first, 3 - first}) {
      if (unsettled(host) && fvmmds_.at(host)) resolve(host, false, false);
    }
  }
}

/// Neither knows: an operator looks at both, and decides for the side that still has the memory.
inline void SimDaemonWorld::force() {
  const bool nobody_knows = worker_deaths_[2] > 0 && (worker_deaths_[1] > 0 || unsettled(1));
  expect(nobody_knows, "unknown on both sides, although a living worker knows");
  const bool memory_here = workers_[1] && !workers_[1]->dead && unsettled(1);
  if (!runs(2)) dest_ran_ = false;  // and what ran there is gone: the operator may say refused
  if (memory_here) {
    resolve(1, true, false);
  } else {
    resolve(2, false, true);
  }
}

/// It runs there, or its user may start it there.
inline bool SimDaemonWorld::owns(int host) {
  const auto vm = fvmmds_.at(host)->registry->find(*Id::from_bytes(config_.id()));
  return vm && (vm->state() == v1::VM_RUNNING || vm->state() == v1::VM_LOST);
}

/// What the command said is so, one host has the VM, and nothing is left over.
inline void SimDaemonWorld::check_end() {
  if (!fvmmds_[1] || !fvmmds_[2]) return expect(false, "an fvmmd is not up");
  expect(owns(1) || owns(2), "nobody has it, and nobody can start it");
  expect(!owns(1) || !owns(2), "both may start it");
  if (result_ == "completed") expect(dest_ran_ && owns(2), "completed, and is not there");
  if (result_ == "aborted" && worker_deaths_[1] == 0) expect(runs(1), "aborted, and does not run here");
  check_host(1);
  check_host(2);
}

inline void SimDaemonWorld::check_host(int host) {
  const auto& fvmmd = *fvmmds_.at(host);
  const auto& worker = workers_.at(host);
  const bool lives = worker && !worker->dead;
  const auto vm = fvmmd.registry->find(*Id::from_bytes(config_.id()));
  const std::string at = fmt::format("host {}: ", host);
  expect(lives == (vm && vm->worker), at + "a worker that no VM has, or a VM without its worker");
  if (vm && vm->state() == v1::VM_RUNNING) {
    expect(runs(host), at + "said to run, and does not");
    expect(vm->record.state() == v1::VM_RUNNING, at + "runs, and its record does not say so");
  }
  if (vm) {
    expect(vm->busy.empty(), at + "somebody still has the VM's claim");
    const auto session = daemon::read_session(vm->directory);
    expect(!session || session->outcome() != v1::OUTCOME_OPEN, at + "an open session.pb");
    expect(!std::filesystem::exists(vm->directory / daemon::kPreviousFile), at + "a record that was kept aside");
  }
  std::size_t directories = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directories_.at(host) / "vms")) {
    ++directories;
    expect(vm && entry.path() == vm->directory, at + "a directory of a VM that is not here: " + entry.path().string());
  }
  expect(directories == fvmmd.registry->list().size(), at + "a VM without its directory");
}

/// A refusal that was told stands, also after the power was lost; and whoever has the VM still has it.
inline void SimDaemonWorld::check_refusal_stands() {
  if (!violation_.empty()) return;
  const bool there = owns(2);
  lose_power(2, 0);
  wait_for_all();
  if (!fvmmds_[2]) return expect(false, "fvmmd does not start again");
  expect(owns(2) == there, "the VM came or went with the power");
  if (!told_refused_ || session_.empty()) return;
  spawn(4, [this] {
    const auto answer =
        fvmmds_[2]->sessions->answer(*Id::from_bytes(session_), Deadline::after(std::chrono::seconds(5)));
    expect(answer.outcome() == "refused", "a refusal that was told was taken back");
  });
  wait_for_all();
}

}  // namespace fvmm::testing
