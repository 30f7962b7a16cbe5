// SimWayBackWorld: the promises, at every hand-over and after every talk. Part of support/sim_way_back_world.h.
#pragma once

#include <fmt/format.h>

#include <cstring>

#include "support/sim_way_back_world.h"

namespace fvmm::testing {

/// The moment at which a machine's guest begins to run.
inline void SimWayBackWorld::on_start(SimMachine& machine) {
  if (trip_.from == nullptr || trip_.from->machine == nullptr) return;
  SimMachine& left = *trip_.from->machine;
  expect(!left.running(), "two runners");
  expect(left.registers() == machine.registers(), "registers differ at the hand-over");
  const auto ours = left.memory().pages({0, plan_.pages_written});
  const auto theirs = machine.memory().pages({0, plan_.pages_written});
  expect(std::memcmp(ours.data(), theirs.data(), ours.size()) == 0, "memory differs at the hand-over");
}

/// Nothing half-made, whatever happened; what is sealed is whole.
inline void SimWayBackWorld::check_store() {
  const Host& left = *trip_.from;
  const auto store = memory::TemplateStore::open(left.store());
  if (!store) return expect(false, "the store does not open again: " + store.error().message());
  for (const auto& entry : std::filesystem::directory_iterator(left.store())) {
    const std::string name = entry.path().filename().string();
    expect(!name.starts_with('.'), name + " is left in the store");
    if (!name.starts_with(migration::way_back_line(config_))) continue;
    expect(name != trip_.refused || plan_.full_from != 0, name + " is kept, although that was refused");
    const auto report = store->verify(name);
    expect(report && report->detail.empty(),
           name + " is damaged: " + (report ? report->detail : report.error().message()));
  }
}

/// What the guest has not written since is in what was kept, byte by byte: the way back carries nothing else.
inline void SimWayBackWorld::check_pages(const migration::WayBack& way_back, const memory::TemplateInfo& kept) {
  migration::Guest& guest = *trip_.to->guest;
  const auto opened = memory::OpenTemplate::open(kept.directory);
  std::vector<std::byte> there(plan_.pages_written * kPageBytes);
  const Status read = opened ? opened->read_pages({0, plan_.pages_written}, there) : Status(opened.error());
  if (!read) return expect(false, kept.name + " cannot be read: " + read.error().message());
  const auto here = guest.machine->memory().pages({0, plan_.pages_written});
  for (memory::PageIndex page = 0; page < plan_.pages_written; ++page) {
    if (way_back.since->pending().test(page)) continue;
    const bool same = std::memcmp(here.data() + page * kPageBytes, there.data() + page * kPageBytes, kPageBytes) == 0;
    expect(same, fmt::format("page {} was not written since, and differs from what was kept", page));
  }
}

inline void SimWayBackWorld::check_agreed(const migration::WayBack& way_back) {
  const auto store = memory::TemplateStore::open(trip_.from->store());
  if (!store) return;
  const auto kept = store->find(way_back.generation, way_back.digest);
  if (!kept) return expect(false, "what was agreed is not in the store: " + kept.error().message());
  check_pages(way_back, *kept);
}

/// Everybody has stopped. What left goes with its worker; a dead host comes up again.
inline void SimWayBackWorld::check_trip() {
  still_ = true;
  trip_.destination.reset();
  Host& left = *trip_.from;
  Host& there = *trip_.to;
  if (trip_.died[2]) there.guest.reset();
  const bool moved = there.guest != nullptr || trip_.died[2];
  trace(0, fmt::format("{} and {} actions since the hand-over", trip_.actions[1], trip_.actions[2]));
  expect(trip_.disturbed || trip_.result == "completed", "the VM does not move, and nothing went wrong: " + reason_);
  if (moved) left.guest.reset();
  left.disk.files->full_from = 0;
  if (plan_.cut_power_at_end && moved) left.disk.files->power_lost();
  if (trip_.died[1] || plan_.cut_power_at_end) {
    auto store = memory::TemplateStore::open(left.store());
    expect(store && store->sweep(), "the store is not swept");
  }
  check_store();
  if (!there.guest) return;
  const bool harvested = there.guest->machine->dirty().harvest().ok();
  const auto& way_back = there.guest->way_back;
  const bool agreed = way_back && way_back->agreed == migration::WayBack::Agreed::kYes;
  expect(harvested && way_back && (agreed || way_back->agreed == migration::WayBack::Agreed::kOpen),
         "neither agreed nor open");
  expect(agreed || trip_.disturbed, "no agreement, and nothing went wrong");
  if (agreed) check_agreed(*way_back);
  agreed_ = agreed_ && agreed;
}

/// Against the template only where that is: a push is not played here.
inline bool SimWayBackWorld::may_go_on() {
  Host& here = *trip_.to;
  if (!here.guest || !violation_.empty()) return false;
  if (migration::may_go_by_way_back(*here.guest, sim_way_back_peer(trip_.from->number))) return true;
  return here.guest->base.name() == "base";
}

/// Generations of one line, old ones gone, nothing pinned.
inline void SimWayBackWorld::check_left_over() {
  for (Host& one : hosts_) one.guest.reset();
  if (!violation_.empty() || seed_ % 16 != 0) return;  // counting pins costs milliseconds
  for (const Host& one : hosts_) {
    const auto store = memory::TemplateStore::open(one.store());
    const auto all = store ? store->list() : Result<std::vector<memory::TemplateInfo>>(store.error());
    expect(all.ok() && all->size() <= 7, "old generations are never removed");
    for (std::size_t i = 0; all && i < all->size(); ++i) expect(all->at(i).pins == 0, all->at(i).name + " is pinned");
  }
}

inline void SimWayBackWorld::run() {
  start_guest();
  for (unsigned number = 0; number < plan_.trips; ++number) {
    Host& from = host(1 + static_cast<int>(number % 2));
    Host& to = host(2 - static_cast<int>(number % 2));
    trip_ = {.number = number, .disturbed = plan_.faults && number == plan_.disturbed, .from = &from, .to = &to};
    links_.clear();
    still_ = false;
    spawn(from.number, [this] { leave(); });
    join();
    check_trip();
    if (!may_go_on()) break;
  }
  const bool here = trip_.to->guest != nullptr;
  result_ = here ? (agreed_ ? "agreed" : "template") : (trip_.died[2] ? "lost" : "not moved");
  check_left_over();
}

}  // namespace fvmm::testing
