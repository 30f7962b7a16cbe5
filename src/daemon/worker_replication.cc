// Worker: continuous templating of its guest.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "daemon/worker_process.h"

namespace fvmm::daemon {
namespace {

migration::ReplicationOptions to_options(const v1::ReplicateRequest& wanted) {
  migration::ReplicationOptions options;
  options.peer = wanted.to();
  if (wanted.interval_ms() != 0) options.policy.interval = std::chrono::milliseconds(wanted.interval_ms());
  options.policy.dirty_pages_max = wanted.dirty_pages_max();
  options.policy.lag_max = std::chrono::milliseconds(wanted.lag_ms_max());
  if (wanted.buffer_bytes() != 0) options.buffer_bytes = wanted.buffer_bytes();
  options.bandwidth_bytes_s = wanted.bandwidth_bytes_s();
  return options;
}

}  // namespace

void Worker::register_replication() {
  using control::Call;
  const std::string service = "fvmm.v1.Worker/";
  server_->unary<v1::WorkerReplicateRequest, v1::ReplicaStatus>(
      service + "StartReplication",
      [this](Call&, const v1::WorkerReplicateRequest& request) { return start_replication(request); });
  server_->unary<v1::Empty, v1::ReplicaStatus>(service + "StopReplication",
                                               [this](Call&, const v1::Empty&) { return stop_replication(); });
  server_->unary<v1::WorkerFenceRequest, v1::Empty>(
      service + "Fence", [this](Call&, const v1::WorkerFenceRequest& request) -> Result<v1::Empty> {
        const v1::VmState state = board_.get().state();
        const bool has_guest = state == v1::VM_RUNNING || state == v1::VM_PAUSED || state == v1::VM_MIGRATING;
        if (!has_guest) return no_guest();
        FVMM_TRY(fence(request.peer()));
        return v1::Empty();
      });
  server_->unary<v1::Empty, v1::ReplicaStatus>(service + "ReplicationStatus",
                                               [this](Call&, const v1::Empty&) { return replication_status(); });
}

// A generation takes the guest for as long as its capture lasts; commands wait for that, not for a link.
Status Worker::with_guest(const std::string& what, const std::function<Status(migration::Guest&)>& work) {
  return with_guest(FVMM_TRY(slot_.take(what, GuestSlot::Stay::kBrief)), work);
}

Status Worker::with_guest(GuestSlot::Held held, const std::function<Status(migration::Guest&)>& work) const {
  if (held.empty()) return Error(Errc::kFailedPrecondition, "this worker has no VM");
  const v1::VmState state = board_.get().state();
  if (state != v1::VM_RUNNING && state != v1::VM_PAUSED) {
    return Error(Errc::kFailedPrecondition, "the VM is neither running nor paused");
  }
  return work(*held);
}

Result<v1::ReplicaStatus> Worker::start_replication(const v1::WorkerReplicateRequest& request) {
  const std::lock_guard lock(replication_mutex_);
  if (replication_) {
    return Error(Errc::kAlreadyExists,
                 fmt::format("the VM is being replicated to {} already", replication_->status().to()));
  }
  migration::ReplicationOptions options = to_options(request.request());
  options.from = request.from();
  if (!request.replication().empty())
    options.replication = FVMM_TRY(Id::from_bytes(request.replication()), "replication");
  if (const std::string& hook = request.request().test_hook(); options_.test_hooks) {
    options.peer_test_hook = migration::peer_part(hook);
    if (options.peer_test_hook.empty()) options.on_step = FVMM_TRY(migration::parse_step_hook(hook));
  }
  options.on_fenced = [this, peer = options.peer] { return fence(peer); };
  options.wanted = [this] { return slot_.wanted(); };
  auto transport = std::make_unique<migration::TcpTransport>(FVMM_TRY(net::Endpoint::parse(options.peer)));
  replication_ = FVMM_TRY(migration::Replication::start(
      std::move(options), [this](const auto& work) { return with_guest("replicate", work); }, std::move(transport)));
  return replication_->status();
}

// Somebody has recovered the VM at the peer. The vCPUs stop first, whatever command has the guest: that one then fails
// with this reason, and a migration under way does not commit.
Status Worker::fence(const std::string& peer) {
  const Status parked = vm_->fence(fmt::format("the VM has been recovered at {} and may not run here any more", peer));
  vm_->disconnect();
  board_.end_as_moved(peer, "recovered there from a replica");  // fvmmd ends this worker
  (void)cancel_migration();
  return parked;
}

Result<v1::ReplicaStatus> Worker::stop_replication() {
  std::unique_ptr<migration::Replication> ending;
  {
    const std::lock_guard lock(replication_mutex_);
    ending = std::move(replication_);
  }
  if (!ending) return Error(Errc::kFailedPrecondition, "the VM is not being replicated");
  ending->stop();
  return ending->status();
}

Result<v1::ReplicaStatus> Worker::replication_status() {
  const std::lock_guard lock(replication_mutex_);
  if (!replication_) return Error(Errc::kFailedPrecondition, "the VM is not being replicated");
  return replication_->status();
}

// Its generations are against what runs here: a VM that leaves ends them first, on its user's word.
Status Worker::check_not_replicated() {
  const std::lock_guard lock(replication_mutex_);
  if (!replication_) return {};
  const std::string name = board_.get().config().name();
  return Error(Errc::kFailedPrecondition,
               fmt::format("VM {} is being replicated to {}: end that first (\"replicate stop {}\")", name,
                           replication_->status().to(), name));
}

}  // namespace fvmm::daemon
