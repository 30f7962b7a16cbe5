// Two hosts and a VM that is replicated from one to the other: one seed is one history. What is real: Replication with
// its threads, policy, buffer and capture; receive_replica(), the daemon's Replicas with their records, and the
// TemplateStore, over real files (support/sim_files.h). What is simulated: time, threads, connections, power, the
// guest, and what fvmmd does around: serving a connection, asking the source before a recovery takes the right to run
// (daemon::take_right() is the real one), booting again what was recovered.
//
// Deterministic, as support/sim_world.h.
#pragma once

#include <spdlog/spdlog.h>

#include <algorithm>
#include <functional>
#include <list>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "daemon/recovery.h"
#include "daemon/replicas.h"
#include "memory/open_template.h"
#include "memory/template_store.h"
#include "migration/replica_receive.h"
#include "migration/replication.h"
#include "net/frame.h"
#include "support/sim_files.h"
#include "support/sim_machine.h"
#include "support/sim_net.h"
#include "support/sim_parts.h"
#include "support/sim_replica_plan.h"

namespace fvmm::testing {

inline SimPlan sim_guest_plan(const SimReplicaPlan& plan) {
  SimPlan guest;
  guest.on_template = plan.on_template;
  guest.pages_per_step = plan.pages_per_step;
  guest.pages_written = plan.pages_written;
  guest.plant = plan.plant;
  return guest;
}

/// Of the part that the guest writes; the rest is the template's.
inline memory::Digest sim_window_hash(const memory::GuestMemory& memory, const SimReplicaPlan& plan) {
  return memory::hash_bytes(memory.pages({0, plan.pages_written}));
}

/// fvmmd at the peer, in one of its lives.
struct SimFvmmd {
  daemon::Replicas replicas;
  memory::TemplateStore store;
};

/// Lives on the simulation's first thread. `directory`: the peer's; the template, if any, is in its store already.
class SimReplicaWorld {
 public:
  SimReplicaWorld(std::uint64_t seed, SimReplicaPlan plan, SimFiles& files, std::filesystem::path directory);
  ~SimReplicaWorld();
  SimReplicaWorld(const SimReplicaWorld&) = delete;
  SimReplicaWorld& operator=(const SimReplicaWorld&) = delete;
  SimReplicaWorld(SimReplicaWorld&&) = delete;
  SimReplicaWorld& operator=(SimReplicaWorld&&) = delete;

  /// The replication with its faults, then everybody's way out: it goes on, and what it left can be recovered.
  void run();
  [[nodiscard]] const std::string& violation() const { return violation_; }
  [[nodiscard]] const std::string& result() const { return result_; }  // "replicating", "fenced", "recovered", "lost"
  [[nodiscard]] std::uint64_t sealed_count() const { return sealed_ever_; }
  [[nodiscard]] Result<std::unique_ptr<net::Stream>> connect(const Deadline& deadline);  // by the source

 private:
  struct Host {
    int epoch = 0;
    int actions = 0;
    bool up = true;
  };
  // sim_replica_hosts.h
  void alive();
  void tick();
  void die(int host, bool power, SimTime back_after);
  void close_links(int host, bool power);
  void spawn(int host, std::function<void()> body);
  void join();
  void trace(int host, std::string_view what);
  void expect(bool promise, const std::string& what);
  SimScheduler& world() { return *SimScheduler::current; }
  Host& host(int number) { return hosts_.at(static_cast<std::size_t>(number)); }
  // sim_replica_source.h
  void start_guest();
  void start_replication();
  void stop_replication();
  Status with_guest(int epoch, const std::function<Status(migration::Guest&)>& work);
  void note_sealed(int epoch, bool one_more);
  void remember_instant(SimMachine& machine);
  [[nodiscard]] bool source_runs() const { return source_lives_ && machine_ != nullptr && machine_->running(); }
  // sim_replica_peer.h
  void boot();
  void serve(std::unique_ptr<net::Stream> stream);
  Status serve(net::Stream& stream, const v1::PeerHello& hello, SimFvmmd& fvmmd);
  bool recover();
  Status recover(SimFvmmd& fvmmd);
  Status start_here(const memory::TemplateInfo& generation);
  void publish_leftovers();
  // sim_replica_checks.h
  void check_moment();
  void check_store();
  void check_generation(const memory::TemplateInfo& info);
  void heal();
  bool wait_until(const std::function<bool()>& what, std::chrono::seconds limit);
  void go_on();
  void way_out();
  void check_left_over();

  const std::uint64_t seed_;
  const SimReplicaPlan plan_;
  SimFiles& files_;
  const std::filesystem::path directory_;
  std::array<Host, 3> hosts_;
  std::list<std::thread> threads_;
  std::map<int, int> peer_threads_;  // by life of its fvmmd
  SimLinks links_;
  bool healed_ = false;

  v1::VmConfig config_;
  v1::TemplateRef base_;
  std::mutex guest_mutex_;  // the worker's slot
  std::unique_ptr<migration::Guest> guest_;
  SimMachine* machine_ = nullptr;  // of guest_
  bool source_lives_ = true;
  bool source_fenced_ = false;
  std::unique_ptr<migration::Replication> replication_;
  std::map<std::uint64_t, memory::Digest> instants_;  // by register: what memory was then
  std::uint64_t noted_ = 0;                           // register of the pause under way
  std::uint64_t acked_ = 0;                           // newest number that the source was told to be sealed
  std::uint64_t acked_since_ = 0;                     // how many, since somebody began to count

  std::shared_ptr<SimFvmmd> fvmmd_;
  std::set<std::string> published_;  // generations that a rename made whole
  std::uint64_t sealed_ever_ = 0;
  bool recovered_ = false;        // the token is durable
  bool vouched_wrongly_ = false;  // the source ran when somebody said that it is dead
  std::uint64_t token_ = 0;       // of the newest recovery
  std::uint64_t published_at_recovery_ = 0;
  std::unique_ptr<memory::OpenTemplate> opened_;
  std::unique_ptr<SimMachine> replica_;  // what runs at the peer
  std::string result_ = "replicating";
  std::string violation_;
};

}  // namespace fvmm::testing

#include "support/sim_replica_checks.h"  // IWYU pragma: export
#include "support/sim_replica_hosts.h"   // IWYU pragma: export
#include "support/sim_replica_peer.h"    // IWYU pragma: export
#include "support/sim_replica_source.h"  // IWYU pragma: export
