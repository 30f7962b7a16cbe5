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
  sim_close_ends(links_, host.number, power);
  world().notify_host(host.number);
  if (!power) return boot_again(host);
  host.up = false;
  spawn(0, [this, &host, back_after, epoch = host.epoch] {
    std::this_thread::sleep_for(std::chrono::nanoseconds(back_after));
    if (host.epoch != epoch) return;
    host.up = true;
    sim_reset_silent(links_);
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
  sim_trace(host, what);
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
    sim_live(host_number, epoch, body);
    body = nullptr;
  });
}

/// Until nobody is left.
inline void SimWorld::join() {
  sim_join(threads_);
}

}  // namespace fvmm::testing
