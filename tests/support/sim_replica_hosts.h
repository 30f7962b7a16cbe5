// SimReplicaWorld: time, threads and deaths. Part of support/sim_replica_world.h.
#pragma once

#include "support/sim_replica_world.h"

namespace fvmm::testing {

/// Called at every action of anybody: a moment passes, for the guest too; others may run; a plan's death strikes. Only
/// threads of the peer are thrown out of what they do: those of a dead worker at the source find its guest and its
/// connections gone, and nothing of them is kept.
inline void SimReplicaWorld::alive() {
  SimThread& self = *sim_self;
  world().advance(1'000 + static_cast<SimTime>(world().random() % 20'000));
  tick();
  if (world().chance(3)) world().yield();
  if (self.host == 0) return;
  Host& here = host(self.host);
  if (self.epoch == here.epoch && !healed_) {
    ++here.actions;
    for (const SimDeath& death : plan_.deaths) {
      if (death.host == self.host && death.at_action == here.actions) die(death.host, death.power, death.back_after);
    }
  }
  if (self.host == 2 && self.epoch != here.epoch) throw SimKilled{};
}

inline void SimReplicaWorld::tick() {
  if (source_lives_ && machine_ != nullptr && world().chance(plan_.guest_pause)) machine_->step();
  check_moment();
}

inline void SimReplicaWorld::die(int number, bool power, SimTime back_after) {
  trace(number, power ? "loses power" : "its process dies");
  Host& here = host(number);
  ++here.epoch;
  if (number == 1) {
    here.up = !power;
    source_lives_ = false;
    if (machine_ != nullptr) machine_->die();
    return close_links(number, power);
  }
  here.up = false;
  fvmmd_.reset();
  if (replica_) replica_->die();
  close_links(number, power);
  if (power) files_.power_lost();
  world().notify_host(number);
  spawn(0, [this, back_after, power, epoch = here.epoch] {
    std::this_thread::sleep_for(std::chrono::nanoseconds(power ? back_after : SimTime{0}));
    const auto ended = [this, epoch] {
      return std::none_of(peer_threads_.begin(), peer_threads_.end(),
                          [epoch](const auto& life) { return life.first < epoch && life.second > 0; });
    };
    while (!ended()) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the kernel clears up after them
    if (host(2).epoch != epoch) return;
    replica_.reset();
    opened_.reset();
    sim_reset_silent(links_);
    spawn(2, [this] { boot(); });
  });
}

inline void SimReplicaWorld::close_links(int number, bool power) {
  sim_close_ends(links_, number, power, true);
}

inline void SimReplicaWorld::trace(int number, std::string_view what) {
  sim_trace(number, what);
}

inline void SimReplicaWorld::expect(bool promise, const std::string& what) {
  if (promise || !violation_.empty()) return;
  violation_ = what;
  trace(0, what);
}

inline void SimReplicaWorld::spawn(int number, std::function<void()> body) {
  const int epoch = number == 0 ? 0 : host(number).epoch;
  if (number == 2) ++peer_threads_[epoch];
  threads_.emplace_back([this, number, epoch, body = std::move(body)]() mutable {
    sim_live(number, epoch, body);
    body = nullptr;
    if (number == 2) --peer_threads_[epoch];
  });
}

/// Until nobody is left.
inline void SimReplicaWorld::join() {
  sim_join(threads_);
}

}  // namespace fvmm::testing
