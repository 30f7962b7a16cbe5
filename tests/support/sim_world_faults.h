// SimWorld: what happens between any two actions of anybody. Part of support/sim_world.h.
#pragma once

#include "support/sim_world.h"

namespace fvmm::testing {

/// Called at every action of a session: a moment passes, for the guest too; others may run; a plan's death strikes.
inline void SimWorld::alive() {
  SimThread& self = *sim_self;
  world().advance(1'000 + static_cast<SimTime>(world().random() % 20'000));
  tick();
  if (world().chance(3)) world().yield();
  if (self.host == 0) return;
  SimHost& here = host(self.host);
  if (self.epoch == here.epoch && !healed_) {
    ++here.actions;
    for (const SimDeath& death : plan_.deaths) {
      if (death.host == self.host && death.at_action == here.actions) die(here, death.power, death.back_after);
    }
  }
  if (self.epoch != here.epoch) throw SimKilled{};
}

inline void SimWorld::tick() {
  for (SimHost* one : {&source_, &destination_}) {
    if (one->machine != nullptr && !healed_ && world().chance(plan_.guest_pause)) one->machine->step();
  }
  check_moment();
}

inline void SimWorld::die(SimHost& host, bool power, SimTime back_after) {
  trace(host.number, power ? "loses power" : "its worker dies");
  ++host.epoch;
  ++host.deaths;
  if (host.machine != nullptr) host.machine->die();
  host.machine = nullptr;
  host.started_cold = false;
  host.source.reset();
  host.left.reset();
  host.destination.reset();
  power ? host.disk.power_lost() : host.disk.process_died();
  for (const auto& weak : links_) {
    const auto link = weak.lock();
    for (int end = 0; link && end < 2; ++end) {
      if (link->hosts.at(end) != host.number || link->closed.at(end)) continue;
      link->closed.at(end) = true;
      link->silent.at(end) = power;
      auto& pieces = link->directions.at(end).pieces;
      if (power && world().chance(2)) std::erase_if(pieces, [this](auto& one) { return one.at > world().now(); });
      link->changed();
    }
  }
  world().notify_host(host.number);
  if (!power) return boot_again(host);
  host.up = false;
  spawn(0, [this, &host, back_after, epoch = host.epoch] {
    std::this_thread::sleep_for(std::chrono::nanoseconds(back_after));
    if (host.epoch != epoch) return;
    host.up = true;
    for (const auto& weak : links_) {  // what comes for the dead one is answered with a reset
      const auto link = weak.lock();
      if (!link || (!link->silent[0] && !link->silent[1])) continue;
      link->cut = true;
      link->changed();
    }
    boot_again(host);
  });
}

/// The VM's worker is dead: its user starts it again wherever the records allow it.
inline void SimWorld::boot_again(SimHost& host) {
  if (!host.may_boot()) return;
  trace(host.number, "boots the VM again");
  host.started_cold = true;
  check_moment();
}

/// A line of the story of one seed.
inline void SimWorld::trace(int host, std::string_view what) {
  spdlog::info("{:.3f} ms, host {}: {}", static_cast<double>(world().now() - kSimEpoch) / 1e6, host, what);
}

inline Status SimWorld::on_step(SimHost& host, std::string_view name) {
  trace(host.number, name);
  alive();
  if (host.steps++ == plan_.failing_step.at(host.number)) return Error(Errc::kAborted, "sim: this step fails");
  return {};
}

inline void SimWorld::spawn(int host_number, std::function<void()> body) {
  const int epoch = host_number == 0 ? 0 : host(host_number).epoch;
  threads_.emplace_back([host_number, epoch, body = std::move(body)]() mutable {
    sim_self->host = host_number;
    sim_self->epoch = epoch;
    try {
      body();
    } catch (const SimKilled&) {  // with its process
    }
    body = nullptr;
  });
}

/// Until nobody is left.
inline void SimWorld::join() {
  while (!threads_.empty()) {
    std::list<std::thread> all;
    all.swap(threads_);
    for (std::thread& thread : all) thread.join();
  }
}

}  // namespace fvmm::testing
