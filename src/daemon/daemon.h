// fvmmd: the control process. Makes every part, in the order in which they need each other, and ends them in reverse.
// Workers and their guests outlive it.
#pragma once

#include <memory>
#include <optional>

#include "base/result.h"
#include "base/unique_fd.h"
#include "control/server.h"
#include "daemon/background_fold.h"
#include "daemon/cpu_templates.h"
#include "daemon/host_service.h"
#include "daemon/incoming.h"
#include "daemon/migration_service.h"
#include "daemon/options.h"
#include "daemon/peer_listener.h"
#include "daemon/pool.h"
#include "daemon/registry.h"
#include "daemon/replica_stops.h"
#include "daemon/replicas.h"
#include "daemon/replication_service.h"
#include "daemon/session_ledger.h"
#include "daemon/spawner.h"
#include "daemon/supervisor.h"
#include "daemon/template_service.h"
#include "daemon/vm_service.h"

namespace fvmm::daemon {

/// Owner: main(). Members are declared in the order of their dependence.
class Daemon {
 public:
  /// Takes the state directory (kFailedPrecondition when another fvmmd has it), loads, adopts the living workers,
  /// settles the rest, and opens both doors. `listener`: the control socket, when systemd passed it.
  static Result<std::unique_ptr<Daemon>> open(const DaemonOptions& options, std::optional<UniqueFd> listener);
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;
  Daemon(Daemon&&) = delete;
  Daemon& operator=(Daemon&&) = delete;

  void run();                          // serves the control socket until stop()
  void stop();                         // thread: any
  void reap() { pool_->drop_dead(); }  // on SIGCHLD
  [[nodiscard]] std::string listen() const { return peers_ ? peers_->bound().text() : ""; }

 private:
  Daemon() = default;
  Status open_state(const DaemonOptions& options);
  Status open_workers(const DaemonOptions& options);
  Status open_services(const DaemonOptions& options, std::optional<UniqueFd> listener);

  UniqueFd state_lock_;
  StopSignal stop_;
  std::unique_ptr<SessionLedger> settled_;
  std::unique_ptr<SessionLedger> refused_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<memory::TemplateStore> store_;
  std::unique_ptr<BackgroundFold> folds_;  // null: the kernel could not
  std::unique_ptr<ExecSpawner> spawner_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<Supervisor> supervisor_;
  std::unique_ptr<IncomingSessions> sessions_;
  std::unique_ptr<Replicas> replicas_;
  std::unique_ptr<PeerListener> peers_;
  std::unique_ptr<CpuTemplates> cpus_;
  std::unique_ptr<VmService> vms_;
  std::unique_ptr<TemplateService> templates_;
  std::unique_ptr<MigrationService> migrations_;
  std::unique_ptr<ReplicaStops> stops_;
  std::unique_ptr<ReplicationService> replications_;
  std::unique_ptr<HostService> host_;
  std::unique_ptr<control::Server> server_;
};

}  // namespace fvmm::daemon
