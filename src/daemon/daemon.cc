#include "daemon/daemon.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>

#include <cerrno>
#include <utility>

#include "base/file.h"
#include "daemon/checks.h"

namespace fvmm::daemon {
namespace {

/// The socket path of a worker must fit into sockaddr_un: 108 bytes with its end, "workers/" and 12 hex digits
/// included.
constexpr std::size_t kRuntimePathBytesMax = 107 - sizeof("/workers/0123456789ab.sock.console");

Result<UniqueFd> lock_state(const std::filesystem::path& directory) {
  UniqueFd fd = FVMM_TRY(open_file(directory / "lock", O_RDWR | O_CREAT));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
  if (errno == EWOULDBLOCK) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("another fvmmd uses the state directory {}: give this one its own --state-dir",
                             directory.string()));
  }
  return Error(Errc::kIo, fmt::format("lock {}", directory.string()), errno);
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::open(const DaemonOptions& options, std::optional<UniqueFd> listener) {
  std::unique_ptr<Daemon> daemon(new Daemon());
  FVMM_TRY(daemon->open_state(options));
  FVMM_TRY(daemon->open_workers(options));
  FVMM_TRY(daemon->open_services(options, std::move(listener)));
  return daemon;
}

Status Daemon::open_state(const DaemonOptions& options) {
  const auto& state = options.state_directory;
  FVMM_TRY(make_directories(state), "state directory");
  state_lock_ = FVMM_TRY(lock_state(state));
  settled_ = FVMM_TRY(SessionLedger::open(state / "sessions", kSettledSessionsMax));
  refused_ = FVMM_TRY(SessionLedger::open(state / "sessions-refused", kRefusedSessionsMax));
  registry_ = FVMM_TRY(Registry::open(state, *settled_));
  store_ = std::make_unique<memory::TemplateStore>(FVMM_TRY(memory::TemplateStore::open(state / "templates")));
  FVMM_TRY(store_->sweep());
  const Status residents = store_->use_residents(resident_directory(options));
  if (!residents && !options.resident_directory.empty()) return residents;
  if (!residents) spdlog::warn("templates are stored only: {}", residents.error().message());
  auto folds = BackgroundFold::start(*store_);
  if (folds) {
    folds_ = std::move(*folds);
  } else {
    spdlog::warn("{}", folds.error().message());
  }
  return {};
}

Status Daemon::open_workers(const DaemonOptions& options) {
  if (options.runtime_directory.native().size() > kRuntimePathBytesMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("the runtime directory {} has more than {} characters: Unix sockets "
                             "in it would have no name",
                             options.runtime_directory.string(), kRuntimePathBytesMax));
  }
  const auto workers = options.runtime_directory / "workers";
  FVMM_TRY(make_directories(workers), "runtime directory");
  ExecSpawner::Options spawner;
  spawner.workers_directory = workers;
  spawner.test_hooks = options.test_hooks;
  spawner.complete_instructions = options.complete_instructions;
  spawner.seccomp = options.seccomp;
  spawner_ = std::make_unique<ExecSpawner>(std::move(spawner));
  supervisor_ = std::make_unique<Supervisor>(*registry_, stop_);
  FVMM_TRY(supervisor_->adopt_all(workers));
  FVMM_TRY(registry_->sweep());
  WorkerPool::Options pool;
  pool.per_recent_shape = options.warm_workers;
  pool.always = options.warm;
  pool_ = FVMM_TRY(WorkerPool::open(*spawner_, std::move(pool)));
  return {};
}

Status Daemon::open_services(const DaemonOptions& options, std::optional<UniqueFd> listener) {
  sessions_ = std::make_unique<IncomingSessions>(*registry_, *settled_, *refused_);
  std::uint64_t staging = options.replica_staging_bytes;
  if (staging == 0) staging = FVMM_TRY(read_host_memory()).total / 100 * kReplicaStagingPercent;
  replicas_ = std::make_unique<Replicas>(FVMM_TRY(Replicas::open(options.state_directory / "replicas", staging)));
  if (!options.listen.empty()) {
    const net::Endpoint at = FVMM_TRY(net::Endpoint::parse(options.listen), "--listen");
    peers_ = FVMM_TRY(PeerListener::open(at, {*registry_, *pool_, *supervisor_, *store_, *sessions_, *replicas_, stop_,
                                              options.state_directory, options.test_hooks}));
  }
  cpus_ = std::make_unique<CpuTemplates>(options.cpu_template_directory);
  vms_ = std::make_unique<VmService>(*registry_, *pool_, *supervisor_, *store_, *cpus_, options.test_hooks);
  templates_ = std::make_unique<TemplateService>(*registry_, *store_, folds_.get());
  MigrationService::Options migrations;
  migrations.listen = listen();
  migrations.test_hooks = options.test_hooks;
  migrations_ = std::make_unique<MigrationService>(*registry_, *store_, stop_, std::move(migrations));
  stops_ = FVMM_TRY(ReplicaStops::open({
      .directory = options.state_directory / "replica-stops",
      .tell = [from = listen()](const auto& stop) { return tell_stop(stop, from, Deadline::after(kTellWait)); },
      .on_recovered = [this](const auto& stop) { fence_recovered(*registry_, stop); },
  }));
  replications_ =
      std::make_unique<ReplicationService>(ReplicationService::Parts{*registry_, *store_, *replicas_, *stops_, *vms_},
                                           ReplicationService::Options{listen(), options.test_hooks, check_cpu_here});
  host_ = std::make_unique<HostService>(listen(), *cpus_, [this] { return pool_->warm(); });
  control::Server::Options server;
  if (listener) {
    server.listener = std::move(*listener);
  } else {
    server.socket = options.runtime_directory / "fvmmd.sock";
  }
  server_ = FVMM_TRY(control::Server::open(std::move(server)), "control socket");
  vms_->bind(*server_);
  templates_->bind(*server_);
  migrations_->bind(*server_);
  replications_->bind(*server_);
  cpus_->bind(*server_);
  host_->bind(*server_);
  if (peers_) peers_->start();
  return {};
}

void Daemon::run() {
  server_->run();
}

void Daemon::stop() {
  stop_.fire();
  registry_->stop();
  server_->stop();
}

Daemon::~Daemon() {
  stop_.fire();
  if (registry_) registry_->stop();
  if (peers_) peers_->join();
  if (supervisor_) supervisor_->join();
  if (pool_) pool_->drain();
}

}  // namespace fvmm::daemon
