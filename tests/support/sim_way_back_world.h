// Two hosts and a VM that goes from one to the other and back: one seed is one history. What is real: both sessions,
// both sides of the talk about the way back (migration/way_back_talk.h), and the TemplateStore of each host over real
// files (support/sim_files.h). What is simulated: time, threads, connections, power, the guest, which writes all the
// time, and what the workers do around. Faults strike from the hand-over on; those before are support/sim_world.h's.
//
// Deterministic, as support/sim_world.h.
#pragma once

#include <spdlog/spdlog.h>

#include <array>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "memory/template_store.h"
#include "migration/destination.h"
#include "migration/generation_line.h"
#include "migration/record.h"
#include "migration/source.h"
#include "migration/template_ref.h"
#include "migration/transport.h"
#include "migration/way_back_talk.h"
#include "net/frame.h"
#include "support/sim_files.h"
#include "support/sim_machine.h"
#include "support/sim_net.h"
#include "support/sim_parts.h"
#include "support/sim_way_back_plan.h"

namespace fvmm::testing {

/// One host's disk: what is under `directory`, with a store in directory/"store" that has the template "base".
struct SimWayBackDisk {
  SimFiles* files;
  std::filesystem::path directory;
};

/// Takes its time, and always has room: what a migration makes of a full disk is support/sim_world.h's.
class SimPatientJournal final : public migration::Journal {
 public:
  explicit SimPatientJournal(std::function<void()> alive) : alive_(std::move(alive)) {}
  Status write(const v1::SessionRecord& record) override {
    (void)record;
    alive_();
    return {};
  }

 private:
  std::function<void()> alive_;
};

inline std::string sim_way_back_peer(int number) {
  return "host" + std::to_string(number) + ":7000";
}

/// Lives on the simulation's first thread. The disks outlive it.
class SimWayBackWorld final : private migration::Transport {
 public:
  SimWayBackWorld(std::uint64_t seed, SimWayBackPlan plan, const std::array<SimWayBackDisk, 2>& disks);
  ~SimWayBackWorld() override;
  SimWayBackWorld(const SimWayBackWorld&) = delete;
  SimWayBackWorld& operator=(const SimWayBackWorld&) = delete;
  SimWayBackWorld(SimWayBackWorld&&) = delete;
  SimWayBackWorld& operator=(SimWayBackWorld&&) = delete;

  /// One trip after another, each with its talk, while the VM lives and the next host has what it is a delta of.
  void run();
  [[nodiscard]] const std::string& violation() const { return violation_; }
  [[nodiscard]] const std::string& result() const { return result_; }  // "agreed", "template", "lost", "not moved"
  [[nodiscard]] const std::string& reason() const { return reason_; }

 private:
  struct Host {
    int number = 0;
    SimWayBackDisk disk{};
    int epoch = 0;                            // which life of the worker
    std::unique_ptr<migration::Guest> guest;  // that has left stays until the trip has ended
    SimMachine* machine = nullptr;            // of the guest, or of the replica inside a session
    [[nodiscard]] std::filesystem::path store() const { return disk.directory / "store"; }
  };
  struct Trip {
    unsigned number = 0;
    bool disturbed = false;
    Host* from = nullptr;
    Host* to = nullptr;
    std::shared_ptr<migration::DestinationSession> destination{};
    std::string result = "killed";  // of the source's session
    bool talking = false;           // faults may strike
    std::array<int, 3> actions{};   // since then, by side: 1 left, 2 has it
    std::array<bool, 3> died{};
    SimTime busy_until = 0;
    std::string refused{};  // the generation that the source said it does not keep
  };
  // sim_way_back_hosts.h
  void alive();
  void tick();
  void disk_moment(Host& host);
  void die(Host& host, bool power, SimTime back_after);
  [[nodiscard]] int side_of(int host) const { return host == trip_.from->number ? 1 : 2; }
  void spawn(int host, std::function<void()> body);
  void join();
  void trace(int host, std::string_view what);
  void expect(bool promise, const std::string& what);
  SimScheduler& world() { return *SimScheduler::current; }
  Host& host(int number) { return hosts_.at(static_cast<std::size_t>(number - 1)); }
  // sim_way_back_trip.h
  void start_guest();
  std::unique_ptr<migration::Guest> make_guest(Host& host, memory::OpenTemplate base, SimPlant plant);
  void leave();
  v1::MigrateResult migrate(migration::SourceOptions options);
  void keep(migration::Departed departed);
  Result<memory::TemplateInfo> keep_unseen(const migration::Guest& guest, migration::Departed& departed);
  void tear(const migration::Departed& departed);
  Result<std::unique_ptr<net::Stream>> connect(const Deadline& deadline) override;
  void serve(std::unique_ptr<net::Stream> stream);
  void migrate_in(std::unique_ptr<net::Stream> stream, const v1::PeerHello& hello);
  Result<std::unique_ptr<migration::Guest>> make_replica(const v1::PeerHello& hello);
  void agree(migration::DestinationSession& session);
  Status when_guest_rests(const std::function<Status(migration::Guest&)>& work);
  // sim_way_back_checks.h
  void on_start(SimMachine& machine);
  void check_trip();
  void check_store();
  void check_agreed(const migration::WayBack& way_back);
  void check_pages(const migration::WayBack& way_back, const memory::TemplateInfo& kept);
  void check_left_over();
  [[nodiscard]] bool may_go_on();

  const std::uint64_t seed_;
  const SimWayBackPlan plan_;
  std::array<Host, 2> hosts_;
  std::list<std::thread> threads_;
  SimLinks links_;  // of this trip
  SimPatientJournal journal_{[this] { alive(); }};
  v1::VmConfig config_;
  Trip trip_;
  bool still_ = false;  // between trips the guest holds still
  bool agreed_ = true;  // on every trip so far
  std::string result_;
  std::string reason_;
  std::string violation_;
};

}  // namespace fvmm::testing

#include "support/sim_way_back_checks.h"  // IWYU pragma: export
#include "support/sim_way_back_hosts.h"   // IWYU pragma: export
#include "support/sim_way_back_trip.h"    // IWYU pragma: export
