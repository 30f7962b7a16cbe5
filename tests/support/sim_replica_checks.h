// SimReplicaWorld: one history, and the promises: at every moment, after every boot, at the end. Part of
// support/sim_replica_world.h.
#pragma once

#include <fmt/format.h>

#include "support/sim_replica_world.h"

namespace fvmm::testing {

inline SimReplicaWorld::SimReplicaWorld(std::uint64_t seed, SimReplicaPlan plan, SimFiles& files,
                                        std::filesystem::path directory)
    : seed_(seed), plan_(std::move(plan)), files_(files), directory_(std::move(directory)) {
  config_.set_id(std::string(16, 'v'));
  config_.set_name("web1");
  config_.set_memory_bytes(kSimRamBytes);
  config_.set_vcpus(1);
  files_.alive = [this] { alive(); };
  files_.full_from = plan_.full_from;
  files_.full_to = plan_.full_to;
  files_.published = [this](const std::string& name) {
    if (!name.starts_with(migration::replica_line(config_))) return;
    published_.insert(name);
    ++sealed_ever_;
    expect(!recovered_ || sealed_ever_ == published_at_recovery_, name + " was sealed after the recovery");
  };
  files_.taken_back = [this](const std::string& name) { published_.erase(name); };
  if (plan_.plant == SimPlant::kSealNotDurable) {
    files_.sync_lies = [this](const std::string& path) { return path == directory_ / "store"; };
  }
  if (plan_.plant == SimPlant::kFencingNotDurable) {
    files_.sync_lies = [this](const std::string& path) { return path == directory_ / "replicas"; };
  }
}

inline SimReplicaWorld::~SimReplicaWorld() = default;

/// Two runners only where somebody vouched wrongly for the source's death, and only until it hears of it.
inline void SimReplicaWorld::check_moment() {
  const bool here = source_runs();
  const bool there = replica_ && replica_->running();
  expect(!here || !there || vouched_wrongly_, "two runners");
  expect(!here || !source_fenced_, "a fenced source runs");
}

/// A generation that is there is whole, and is the guest at one instant.
inline void SimReplicaWorld::check_generation(const memory::TemplateInfo& info) {
  const auto opened = memory::OpenTemplate::open(info.directory);
  if (!opened) return expect(false, info.name + " cannot be restored: " + opened.error().message());
  const auto state = opened->machine_state();
  if (!state) return expect(false, info.name + " cannot be restored: " + state.error().message());
  std::array<std::uint64_t, 2> registers{};
  std::memcpy(registers.data(), state->pit2().data(), sizeof registers);
  std::vector<std::byte> window(plan_.pages_written * kPageBytes);
  if (const Status read = opened->read_pages({0, plan_.pages_written}, window); !read) {
    return expect(false, info.name + " cannot be restored: " + read.error().message());
  }
  const auto instant = instants_.find(registers[1]);
  expect(instant != instants_.end() && instant->second == memory::hash_bytes(window),
         info.name + " is not the guest at its instant");
}

/// After a boot: nothing unsealed, nothing torn, nothing acknowledged is missing.
inline void SimReplicaWorld::check_store() {
  std::uint64_t newest = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_ / "store")) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".staging-") || name.starts_with(".trash-")) expect(false, name + " is left in the store");
    if (!name.starts_with(migration::replica_line(config_))) continue;
    const auto info = fvmmd_->store.find(name);
    if (!info) return expect(false, name + " is damaged: " + info.error().message());
    newest = std::max(newest, info->generation);
    expect(published_.contains(name), name + " is in the store, and was never sealed");
    check_generation(*info);
  }
  expect(newest >= acked_, fmt::format("generation {} was acknowledged, {} is the newest here", acked_, newest));
}

inline bool SimReplicaWorld::wait_until(const std::function<bool()>& what, std::chrono::seconds limit) {
  const Deadline deadline = Deadline::after(limit);
  const auto look = std::clamp<std::chrono::milliseconds>(plan_.interval, std::chrono::milliseconds(10),
                                                          std::chrono::milliseconds(200));
  while (!what()) {
    if (deadline.passed() || !violation_.empty()) return false;
    std::this_thread::sleep_for(look);
    tick();
  }
  return true;
}

/// With whatever the plan lets go wrong, until there are generations enough, or the source is no more.
inline void SimReplicaWorld::go_on() {
  const auto due = [this](SimTime at) { return at != kSimNever && world().now() - kSimEpoch >= at; };
  bool restarted = false;
  bool asked = false;
  (void)wait_until(
      [&] {
        if (due(plan_.restart_at) && !std::exchange(restarted, true) && source_lives_ && !source_fenced_) {
          stop_replication();
          start_replication();
        }
        if (due(plan_.recover_at) && host(2).up && !std::exchange(asked, true)) spawn(2, [this] { recover(); });
        const bool all_begun = asked || plan_.recover_at == kSimNever;
        return !source_lives_ || source_fenced_ || (all_begun && acked_since_ >= plan_.generations);
      },
      std::chrono::seconds(60));
}

/// The network is whole, the disk has room, everybody is up.
inline void SimReplicaWorld::heal() {
  healed_ = true;
  files_.full_from = 0;
  expect(wait_until([this] { return host(2).up; }, std::chrono::seconds(100)), "the peer does not come back");
}

/// It goes on, or its source knows why not; what is left of it can be recovered, once its source is dead.
inline void SimReplicaWorld::way_out() {
  heal();
  if (source_lives_ && violation_.empty()) {
    acked_since_ = 0;  // a recovery that its host did not survive may have fenced the source, too
    const bool settled =
        wait_until([this] { return source_fenced_ || (!recovered_ && acked_since_ >= 2); }, std::chrono::seconds(600));
    expect(settled, recovered_ ? "a source is never fenced" : "the replication does not go on");
    if (source_fenced_) result_ = "fenced";
  }
  if (plan_.cut_power_at_end && violation_.empty()) {
    die(2, true, 5 * kSimMs);
    heal();
  }
  if (source_lives_ && !source_fenced_) die(1, true, 0);
  stop_replication();
  bool there = false;
  for (int attempt = 0; attempt < 2 && !there && violation_.empty(); ++attempt) {
    spawn(2, [this] { recover(); });
    join();
    there = replica_ != nullptr && replica_->running();
  }
  const bool nothing = published_.empty() && acked_ == 0;  // then it is given up, and booted again at its source
  expect(there || nothing, "nobody runs it, and nobody can");
  if (result_ == "replicating") result_ = there ? "recovered" : "lost";
}

/// One record, the generations of one chain, nothing half-made, nothing pinned.
inline void SimReplicaWorld::check_left_over() {
  replica_.reset();
  opened_.reset();
  if (!violation_.empty()) return;
  std::size_t generations = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_ / "store")) {
    const std::string name = entry.path().filename().string();
    expect(!name.starts_with('.'), name + " is left in the store");
    generations += name.starts_with(migration::replica_line(config_)) ? 1 : 0;
  }
  expect(generations <= 2 * migration::kReplicaChainMax + 2, "old generations are never removed");
  for (const auto& entry : std::filesystem::directory_iterator(directory_ / "replicas")) {
    expect(entry.path().extension() == ".pb", entry.path().filename().string() + " is left of a record");
  }
  if (seed_ % 16 != 0) return;  // counting pins costs milliseconds
  const auto all = fvmmd_->store.list();
  for (std::size_t i = 0; all && i < all->size(); ++i)
    expect(all->at(i).pins == 0, all->at(i).name + " is still pinned");
}

inline void SimReplicaWorld::run() {
  if (plan_.on_template) {
    auto store = *memory::TemplateStore::open(directory_ / "store");
    const auto info = store.find("base");
    FVMM_CHECK(info.ok(), "the template is in the store");
    base_.set_id(info->id.raw());
    base_.set_name(info->name);
    base_.set_digest(info->digest.raw());
    base_.set_memory_bytes(info->memory_bytes);
  }
  spawn(2, [this] { boot(); });
  join();
  start_guest();
  start_replication();
  go_on();
  way_out();
  stop_replication();
  close_links(1, false);
  join();
  check_left_over();
  fvmmd_.reset();
  guest_.reset();
}

}  // namespace fvmm::testing
