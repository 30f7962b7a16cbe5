// SimDaemonWorld: time, deaths, and fvmmd's lives. Part of support/sim_daemon_world.h.
#pragma once

#include <fmt/format.h>

#include "daemon/spawner.h"
#include "support/sim_daemon_worker.h"

namespace fvmm::testing {

/// Called at every action of anybody: a moment passes, for the guests too; others may run; a plan's death strikes.
inline void SimDaemonWorld::alive() {
  SimThread& self = *sim_self;
  world().advance(1'000 + static_cast<SimTime>(world().random() % 20'000));
  tick();
  if (world().chance(3)) world().yield();
  if (self.host == 0) return;
  Process& here = processes_.at(self.host);
  if (self.epoch == here.epoch && begun_ && !healed_) {
    ++here.actions;
    strike(self.host);
  }
  if (self.epoch != here.epoch) throw SimKilled{};
}

inline void SimDaemonWorld::tick() {
  for (const auto& worker : workers_) {
    const bool steps = worker && worker->machine != nullptr && begun_ && !healed_;
    if (steps && world().chance(plan_.guest_pause)) worker->machine->step();
  }
  check_moment();
}

/// A third of the deaths that are not by power are fvmmd's, which a worker outlives.
inline void SimDaemonWorld::strike(int process) {
  for (const SimDeath& death : plan_.deaths) {
    const bool of_fvmmd = !death.power && death.at_action % 3 == 0;
    if ((of_fvmmd ? death.host + 2 : death.host) != process) continue;
    if (death.at_action != processes_.at(process).actions) continue;
    if (death.power) {
      lose_power(death.host, death.back_after);
      continue;
    }
    if (!of_fvmmd) ++worker_deaths_.at(death.host);
    die(process);
    if (of_fvmmd) begin_fvmmd(death.host, death.back_after % (20 * kSimMs));
  }
}

inline void SimDaemonWorld::die(int process) {
  const int host = host_of(process);
  trace(host, process > 2 ? "fvmmd dies" : "its worker dies");
  ++processes_.at(process).epoch;
  if (process > 2) {
    if (const auto old = std::exchange(fvmmds_.at(host), nullptr)) spawn(0, [old] { old->end(); });
  } else if (const auto worker = workers_.at(host)) {
    worker->dead = true;
    if (worker->machine != nullptr) worker->machine->die();
    worker->machine = nullptr;
    world().notify(worker.get(), true);
  }
  sim_close_ends(links_, process, false);
  world().notify_host(process);
}

inline void SimDaemonWorld::lose_power(int host, SimTime back_after) {
  trace(host, "loses power");
  up_.at(host) = false;
  ++worker_deaths_.at(host);
  sim_close_ends(links_, host, true);
  sim_close_ends(links_, host + 2, true);
  die(host);
  die(host + 2);
  started_cold_.at(host) = false;
  files_.at(host)->power_lost();
  begin_fvmmd(host, back_after);
}

/// fvmmd starts again, later; what comes for a dead host then is answered with a reset.
inline void SimDaemonWorld::begin_fvmmd(int host, SimTime after) {
  spawn(0, [this, host, after, epoch = processes_.at(host + 2).epoch] {
    std::this_thread::sleep_for(std::chrono::nanoseconds(after));
    if (processes_.at(host + 2).epoch != epoch) return;
    up_.at(host) = true;
    sim_reset_silent(links_);
    spawn(host + 2, [this, host] { boot(host); });
  });
}

/// A full disk: somebody starts it again, some times.
inline void SimDaemonWorld::boot(int host) {
  constexpr int kAttempts = 20;
  std::string why;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const auto made = open_fvmmd(host, why);
    if (made) {
      fvmmds_.at(host) = made;
      trace(host, "fvmmd is up");
      return;
    }
    trace(host, "fvmmd does not start: " + why);
    std::this_thread::sleep_for(std::chrono::seconds(1));
    alive();
  }
  expect(!healed_, "fvmmd does not start again: " + why);
}

/// Daemon::open().
inline std::shared_ptr<SimDaemon> SimDaemonWorld::open_fvmmd(int host, std::string& why) {
  auto fvmmd = std::make_shared<SimDaemon>();
  const auto open = [&]() -> Status {
    const auto& state = directories_.at(host);
    fvmmd->settled = FVMM_TRY(daemon::SessionLedger::open(state / "sessions", daemon::kSettledSessionsMax));
    fvmmd->refused = FVMM_TRY(daemon::SessionLedger::open(state / "sessions-refused", daemon::kRefusedSessionsMax));
    fvmmd->registry = FVMM_TRY(daemon::Registry::open(state, *fvmmd->settled));
    fvmmd->store = std::make_unique<memory::TemplateStore>(FVMM_TRY(memory::TemplateStore::open(state / "templates")));
    fvmmd->supervisor = std::make_unique<daemon::Supervisor>(*fvmmd->registry, fvmmd->stop);
    FVMM_TRY(adopt(*fvmmd, host));
    FVMM_TRY(fvmmd->registry->sweep());
    fvmmd->sessions = std::make_unique<daemon::IncomingSessions>(*fvmmd->registry, *fvmmd->settled, *fvmmd->refused);
    daemon::MigrationService::Options options;
    options.listen = fmt::format("127.0.0.{}:7000", host);
    options.ask = [this, host](const v1::SessionRecord& session) { return ask(host, session); };
    fvmmd->migrations =
        std::make_unique<daemon::MigrationService>(*fvmmd->registry, *fvmmd->store, fvmmd->stop, std::move(options));
    return {};
  };
  const Status opened = open();
  if (opened) return fvmmd;
  why = opened.error().message();
  fvmmd->end();
  return nullptr;
}

/// Supervisor::adopt(), but for the socket.
inline Status SimDaemonWorld::adopt(SimDaemon& fvmmd, int host) {
  const auto worker = workers_.at(host);
  if (!worker || worker->dead) return {};
  const auto process = std::make_shared<SimWorkerProcess>(*this, worker);
  const auto info = process->client()->info(Deadline::after(daemon::kAdoptWait));
  if (!info) return {};  // it has just died
  if (info->config().id().empty()) {
    daemon::end_worker(*process);
    return {};
  }
  FVMM_TRY(fvmmd.registry->adopt(*info, process));
  fvmmd.supervisor->watch(*Id::from_bytes(info->config().id()), process);
  return {};
}

/// The VM's user, who starts it again wherever fvmmd allows that.
inline void SimDaemonWorld::start_lost_vms() {
  while (!stopping_) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    for (int host = 1; host <= 2; ++host) {
      const auto fvmmd = fvmmds_.at(host);
      if (!fvmmd || started_cold_.at(host)) continue;
      const auto vm = fvmmd->registry->find(*Id::from_bytes(config_.id()));
      if (!vm || vm->state() != v1::VM_LOST || vm->worker) continue;
      const auto claim = fvmmd->registry->claim(vm->id, "vm start");
      if (!claim || fvmmds_.at(host) != fvmmd) continue;
      trace(host, "boots the VM again");
      started_cold_.at(host) = true;
      check_moment();
    }
  }
}

inline void SimDaemonWorld::trace(int host, std::string_view what) {
  sim_trace(host, what);
}

inline void SimDaemonWorld::spawn(int process, std::function<void()> body) {
  ++active_;
  threads_.emplace_back([this, process, epoch = processes_.at(process).epoch, body = std::move(body)]() mutable {
    sim_live(process, epoch, body);
    sim_self->host = 0;
    body = nullptr;
    --active_;
    world().notify(&active_, true);
  });
}

/// Until nothing is under way any more but the watches, and whoever waits with this thread.
inline void SimDaemonWorld::wait_for_all() {
  while (active_ > 0) world().block(&active_, kSimNever);
}

}  // namespace fvmm::testing
