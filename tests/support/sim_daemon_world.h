// Two hosts with an fvmmd each, and a VM that migrates: one seed is one history. What is real: SourceSession and
// DestinationSession with FileJournal; of fvmmd, the Registry with its claims and records, SessionLedger,
// IncomingSessions, Supervisor, MigrationService (migrate and resolve) and what the peer listener tells the registry of
// a VM that comes in, all over real files (support/sim_files.h). What is simulated: time, threads, connections, power,
// the machines, and the calls between an fvmmd and its workers. fvmmd and a worker die apart from each other.
//
// Deterministic, as support/sim_world.h.
#pragma once

#include <spdlog/spdlog.h>

#include <array>
#include <filesystem>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "daemon/incoming.h"
#include "daemon/migration_service.h"
#include "daemon/registry.h"
#include "daemon/session_ledger.h"
#include "daemon/supervisor.h"
#include "memory/template_store.h"
#include "migration/destination.h"
#include "migration/record.h"
#include "migration/source.h"
#include "migration/transport.h"
#include "support/sim_files.h"
#include "support/sim_machine.h"
#include "support/sim_net.h"
#include "support/sim_parts.h"
#include "support/sim_plan.h"

namespace fvmm::testing {

/// A worker process with at most one VM, as long as it lives and as whoever asks it sees it.
struct SimWorker {
  int host = 0;   // 1: the source's, 2: the destination's
  int epoch = 0;  // which life of that host's worker
  bool dead = false;
  v1::WorkerInfo info;
  int version = 0;  // of info
  v1::VmState before_migration = v1::VM_STATE_NONE;
  std::filesystem::path vm_directory;
  std::unique_ptr<migration::FileJournal> journal;  // outlives its session
  std::unique_ptr<migration::Guest> guest;
  SimMachine* machine = nullptr;  // of the guest, or of the replica inside the session
  std::shared_ptr<migration::SourceSession> source;
  std::optional<std::pair<Id, migration::SourceState>> left;
  std::shared_ptr<migration::DestinationSession> destination;
};

/// fvmmd of one host, in one of its lives. Its threads keep it until they have ended.
struct SimDaemon {
  daemon::StopSignal stop;
  std::unique_ptr<daemon::SessionLedger> settled;
  std::unique_ptr<daemon::SessionLedger> refused;
  std::unique_ptr<daemon::Registry> registry;
  std::unique_ptr<memory::TemplateStore> store;
  std::unique_ptr<daemon::IncomingSessions> sessions;
  std::unique_ptr<daemon::MigrationService> migrations;
  std::unique_ptr<daemon::Supervisor> supervisor;

  void end() {
    stop.fire();
    if (registry) registry->stop();
  }
};

/// Lives on the simulation's first thread. Process numbers, which sim_self->host holds: 1 and 2 the workers, 3 and 4
/// the fvmmds, of hosts 1 and 2.
class SimDaemonWorld {
 public:
  using Files = std::array<SimFiles*, 3>;
  SimDaemonWorld(std::uint64_t seed, SimPlan plan, Files files, const std::filesystem::path& directory);
  ~SimDaemonWorld();
  SimDaemonWorld(const SimDaemonWorld&) = delete;
  SimDaemonWorld& operator=(const SimDaemonWorld&) = delete;
  SimDaemonWorld(SimDaemonWorld&&) = delete;
  SimDaemonWorld& operator=(SimDaemonWorld&&) = delete;

  void run();
  [[nodiscard]] const std::string& violation() const { return violation_; }
  [[nodiscard]] const std::string& result() const { return result_; }  // "killed": nobody got one
  [[nodiscard]] const std::string& reason() const { return reason_; }

 private:
  friend class SimWorkerCalls;
  friend class SimWorkerProcess;
  using S = migration::SourceState;
  struct Process {
    int epoch = 0;
    int actions = 0;
  };
  static int host_of(int process) { return process > 2 ? process - 2 : process; }

  // sim_daemon_hosts.h
  void alive();
  void tick();
  void strike(int process);
  void die(int process);
  void lose_power(int host, SimTime back_after);
  void begin_fvmmd(int host, SimTime after);
  void boot(int host);
  std::shared_ptr<SimDaemon> open_fvmmd(int host, std::string& why);
  Status adopt(SimDaemon& fvmmd, int host);
  void start_lost_vms();
  void spawn(int process, std::function<void()> body);
  void wait_for_all();
  void trace(int host, std::string_view what);
  SimScheduler& world() { return *SimScheduler::current; }

  // sim_daemon_worker.h
  std::shared_ptr<SimWorker> new_worker(int host);
  std::unique_ptr<migration::Guest> make_guest(SimWorker& worker, const v1::VmConfig& config,
                                               const v1::TemplateRef& base, SimMachineFaults faults);
  v1::MigrateResult migrate_away(SimWorker& worker, const v1::WorkerMigrateRequest& request);
  Status come_in(SimWorker& worker, const v1::PeerHello& hello, std::unique_ptr<net::Stream> stream);
  v1::SessionAnswer answer_of_worker(SimWorker& worker, const std::string& session);
  Result<v1::WorkerInfo> settle_worker(SimWorker& worker, bool resume);
  void report(SimWorker& worker, v1::VmState state, const std::string& detail = "");
  Status on_step(int host, std::string_view name);

  // sim_daemon_peer.h
  Result<std::unique_ptr<net::Stream>> connect(int to, const Deadline& deadline);
  void serve(int host, const std::shared_ptr<SimLink>& link, std::unique_ptr<net::Stream> stream);
  Status migrate_in(SimDaemon& fvmmd, const v1::PeerHello& hello, const std::shared_ptr<SimLink>& link,
                    std::unique_ptr<net::Stream>& stream);
  Result<v1::SessionAnswer> ask(int host, const v1::SessionRecord& session);

  // sim_daemon_checks.h
  void expect(bool promise, const std::string& what);
  void check_moment();
  void on_start(SimWorker& worker, SimMachine& machine);
  void told(const std::string& outcome);
  void order_migration();
  void way_out();
  void resolve_all();
  void resolve(int host, bool start_here, bool discard);
  void force();
  void check_end();
  void check_host(int host);
  [[nodiscard]] bool owns(int host);
  [[nodiscard]] bool unsettled(int host);
  void check_refusal_stands();
  [[nodiscard]] bool runs(int host) const {
    const auto& worker = workers_.at(host);
    const bool lives = worker && !worker->dead && worker->machine != nullptr && worker->machine->running();
    return started_cold_.at(host) || lives;
  }

  const std::uint64_t seed_;
  const SimPlan plan_;
  const Files files_;
  const std::array<std::filesystem::path, 3> directories_;
  std::array<Process, 5> processes_;
  std::array<bool, 3> up_{true, true, true};
  std::array<bool, 3> booting_{};
  std::array<std::shared_ptr<SimDaemon>, 3> fvmmds_;
  std::array<std::shared_ptr<SimWorker>, 3> workers_;
  std::array<bool, 3> started_cold_{};  // its memory was lost, and its user started it again
  std::array<int, 3> worker_deaths_{};
  std::array<int, 3> steps_{};
  std::list<std::thread> threads_;
  int active_ = 0;  // of threads_
  SimLinks links_;
  v1::VmConfig config_;
  v1::TemplateRef base_;
  int pids_ = 1000;
  bool begun_ = false;   // faults may strike
  bool healed_ = false;  // and no longer
  bool stopping_ = false;
  S seen_ = S::kConnecting;
  std::string session_;
  bool committed_ = false;
  bool dest_ran_ = false;
  bool told_refused_ = false;
  std::string result_ = "killed";
  std::string reason_;
  std::string violation_;
};

}  // namespace fvmm::testing

#include "support/sim_daemon_checks.h"  // IWYU pragma: export
#include "support/sim_daemon_hosts.h"   // IWYU pragma: export
#include "support/sim_daemon_peer.h"    // IWYU pragma: export
#include "support/sim_daemon_worker.h"  // IWYU pragma: export
