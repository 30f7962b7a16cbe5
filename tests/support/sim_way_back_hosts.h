// SimWayBackWorld: time, threads and deaths. Part of support/sim_way_back_world.h.
#pragma once

#include "support/sim_way_back_world.h"

namespace fvmm::testing {

/// Called at every action of anybody: a moment passes, for the guest too; others may run; a plan's death strikes.
inline void SimWayBackWorld::alive() {
  SimThread& self = *sim_self;
  world().advance(1'000 + static_cast<SimTime>(world().random() % 20'000));
  tick();
  if (world().chance(3)) world().yield();
  if (self.host == 0) return;
  Host& here = host(self.host);
  if (self.epoch == here.epoch && trip_.talking) {
    const int side = side_of(self.host);
    const int action = ++trip_.actions.at(static_cast<std::size_t>(side));
    for (const SimDeath& death : plan_.deaths) {
      if (trip_.disturbed && death.host == side && death.at_action == action) die(here, death.power, death.back_after);
    }
  }
  if (self.epoch != here.epoch) throw SimKilled{};
}

inline void SimWayBackWorld::tick() {
  for (Host& one : hosts_) {
    if (one.machine != nullptr && !still_ && world().chance(plan_.guest_pause)) one.machine->step();
  }
}

inline void SimWayBackWorld::disk_moment(Host& host) {
  if (plan_.disk_step > 0 && trip_.disturbed && trip_.talking && &host == trip_.from) {
    std::this_thread::sleep_for(
        std::chrono::nanoseconds(world().random() % static_cast<std::uint64_t>(plan_.disk_step)));
    for (int i = 0; i < 4; ++i) tick();
  }
  alive();
}

inline void SimWayBackWorld::die(Host& host, bool power, SimTime back_after) {
  trace(host.number, power ? "loses power" : "its worker dies");
  ++host.epoch;
  trip_.died.at(static_cast<std::size_t>(side_of(host.number))) = true;
  if (host.machine != nullptr) host.machine->die();
  sim_close_ends(links_, host.number, power);
  if (power) host.disk.files->power_lost();
  world().notify_host(host.number);
  if (!power) return;
  spawn(0, [this, back_after] {  // what comes for the dead one is answered with a reset
    std::this_thread::sleep_for(std::chrono::nanoseconds(back_after));
    sim_reset_silent(links_);
  });
}

inline void SimWayBackWorld::trace(int number, std::string_view what) {
  sim_trace(number, what);
}

inline void SimWayBackWorld::expect(bool promise, const std::string& what) {
  if (promise || !violation_.empty()) return;
  violation_ = what;
  trace(0, what);
}

inline void SimWayBackWorld::spawn(int number, std::function<void()> body) {
  const int epoch = number == 0 ? 0 : host(number).epoch;
  threads_.emplace_back([number, epoch, body = std::move(body)]() mutable {
    sim_live(number, epoch, body);
    body = nullptr;
  });
}

/// Until nobody is left: every wait of everybody has ended.
inline void SimWayBackWorld::join() {
  sim_join(threads_);
}

}  // namespace fvmm::testing
