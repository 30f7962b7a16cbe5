// What every simulated world is made of: a line of its story, threads that die with their process, and what a death
// does to connections.
#pragma once

#include <spdlog/spdlog.h>

#include <functional>
#include <list>
#include <string_view>
#include <thread>
#include <utility>

#include "support/sim_net.h"

namespace fvmm::testing {

/// A line of the story of one seed.
inline void sim_trace(int host, std::string_view what) {
  const SimTime now = SimScheduler::current->now() - kSimEpoch;
  spdlog::info("{:.3f} ms, host {}: {}", static_cast<double>(now) / 1e6, host, what);
}

/// Runs `body` on this simulated thread as that life of that process, and ends it with the process.
inline void sim_live(int process, int epoch, std::function<void()>& body) {
  sim_self->host = process;
  sim_self->epoch = epoch;
  try {
    body();
  } catch (const SimKilled&) {  // with its process
  }
}

/// Until nobody is left: those who join may begin others.
inline void sim_join(std::list<std::thread>& threads) {
  while (!threads.empty()) {
    std::list<std::thread> all;
    all.swap(threads);
    for (std::thread& thread : all) thread.join();
  }
}

/// A process has died: its ends close. Where its host lost power that is not seen, and what was under way may be lost.
/// `cancelled`: its threads live on, and find their connections gone.
inline void sim_close_ends(const SimLinks& links, int process, bool power, bool cancelled = false) {
  SimScheduler& world = *SimScheduler::current;
  for (const auto& weak : links) {
    const auto link = weak.lock();
    for (std::size_t end = 0; link && end < 2; ++end) {
      if (link->hosts.at(end) != process || link->closed.at(end)) continue;
      link->closed.at(end) = true;
      if (cancelled) link->cancelled.at(end) = true;
      link->silent.at(end) = power;
      auto& pieces = link->directions.at(end).pieces;
      if (power && world.chance(2)) std::erase_if(pieces, [&](const auto& one) { return one.at > world.now(); });
      link->changed();
    }
  }
}

/// A host that had lost power is up again: what comes for the dead one is answered with a reset.
inline void sim_reset_silent(const SimLinks& links) {
  for (const auto& weak : links) {
    const auto link = weak.lock();
    if (!link || (!link->silent[0] && !link->silent[1])) continue;
    link->cut = true;
    link->changed();
  }
}

}  // namespace fvmm::testing
