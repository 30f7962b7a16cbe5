#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "base/file.h"
#include "daemon/call_worker.h"
#include "daemon/registry.h"
#include "daemon/resolve.h"
#include "vmm/vsock_config.h"

namespace fvmm::daemon {

namespace {

constexpr std::chrono::seconds kOwnWordWait{5};  // for a worker's word about its own hand-over

}  // namespace

namespace fs = std::filesystem;

Claim::~Claim() {
  if (registry_ != nullptr) registry_->release(id_);
}

VmView Claim::view() const {
  const std::lock_guard lock(registry_->mutex_);
  return registry_->view_of(id_, registry_->vms_.at(id_));
}

Status Claim::change(const std::function<void(v1::VmRecord&)>& edit) {
  v1::VmRecord record = view().record;
  edit(record);
  FVMM_TRY(make_directory());
  FVMM_TRY(write_vm_record(registry_->directory_of(id_) / kVmRecordFile, record), record.config().name());
  registry_->store(id_, record);
  return {};
}

void Claim::attach(std::shared_ptr<WorkerProcess> worker, const v1::WorkerInfo& info, double start_ms) {
  const std::lock_guard lock(registry_->mutex_);
  Registry::Entry& entry = registry_->vms_.at(id_);
  entry.worker = std::move(worker);
  entry.info = info;
  entry.start_ms = start_ms;
}

std::shared_ptr<WorkerProcess> Claim::detach() {
  const std::lock_guard lock(registry_->mutex_);
  Registry::Entry& entry = registry_->vms_.at(id_);
  entry.info.Clear();
  registry_->released_.notify_all();  // its watch may be waiting in claim_for()
  return std::exchange(entry.worker, nullptr);
}

void Claim::note(const v1::WorkerInfo& info) {
  const std::lock_guard lock(registry_->mutex_);
  Registry::Entry& entry = registry_->vms_.at(id_);
  if (entry.worker) entry.info = info;
}

void Claim::let_others_wait() {
  const std::lock_guard lock(registry_->mutex_);
  registry_->vms_.at(id_).internal = true;
}

Status Claim::make_directory() {
  const fs::path directory = registry_->directory_of(id_);
  std::error_code ignored;
  if (fs::is_directory(directory, ignored)) return {};
  FVMM_TRY(make_directories(directory));
  return fsync_path(directory.parent_path());
}

Status Claim::remove() {
  const fs::path directory = registry_->directory_of(id_);
  FVMM_TRY(archive_session());
  FVMM_TRY(remove_file(directory / kVmRecordFile));  // the point of no return: sweep() finishes what comes after
  std::error_code error;
  fs::remove_all(directory, error);
  if (error) spdlog::warn("{} could not be removed: {}", directory.string(), error.message());
  const std::lock_guard lock(registry_->mutex_);
  registry_->vms_.at(id_).saved = false;  // release() forgets it
  return {};
}

Status Claim::archive_session() {
  const auto session = read_session(registry_->directory_of(id_));
  if (!session) return {};
  if (session->outcome() == v1::OUTCOME_OPEN) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {} has an open hand-over; run \"fvmmctl migrate resolve {}\"",
                             view().record.config().name(), view().record.config().name()));
  }
  return registry_->ledger_.record(*session);
}

Status Claim::close_session() {
  const VmView vm = view();
  auto session = read_session(vm.directory);
  if (!is_open(session) || session->role() == v1::SESSION_ROLE_NONE || !vm.worker) return {};
  v1::SessionQuery query;
  query.set_session(session->session());
  const auto answer = vm.worker->client()->ask_session(query, Deadline::after(kOwnWordWait));
  if (!answer) return {};
  const PeerOutcome known = parse_outcome(*answer);
  if (known == PeerOutcome::kUnknown) return {};
  // A destination's worker writes its refusal before it speaks it.
  if (!is_open(read_session(vm.directory))) return {};
  const auto refused = session->role() == v1::ROLE_LEAVING ? v1::OUTCOME_ABORTED : v1::OUTCOME_REFUSED;
  session->set_outcome(known == PeerOutcome::kStarted ? v1::OUTCOME_STARTED : refused);
  return write_session(vm.directory, *session);
}

Status Claim::begin_incoming(const v1::VmRecord& incoming) {
  const fs::path directory = registry_->directory_of(id_);
  const VmView before = view();
  FVMM_TRY(make_directory());
  FVMM_TRY(archive_session());
  FVMM_TRY(remove_file(directory / kSessionFile));  // so that a session.pb found later is of this hand-over
  if (before.record.state() == v1::VM_MOVED) {
    FVMM_TRY(write_vm_record(directory / kPreviousFile, before.record));
  } else {
    FVMM_TRY(remove_file(directory / kPreviousFile));
  }
  return change([&](v1::VmRecord& record) { record = incoming; });
}

Status Claim::finish_incoming(const std::function<void(v1::VmRecord&)>& edit) {
  FVMM_TRY(change(edit));
  return remove_file(registry_->directory_of(id_) / kPreviousFile);
}

Status Claim::drop_incoming() {
  const fs::path directory = registry_->directory_of(id_);
  FVMM_TRY(archive_session());
  const auto previous = FVMM_TRY(read_vm_record(directory / kPreviousFile));
  if (!previous) return remove();
  FVMM_TRY(change([&](v1::VmRecord& record) { record = *previous; }));
  return remove_file(directory / kPreviousFile);
}

Status Claim::settle_without_worker(const std::string& death) {
  const VmView vm = view();
  const auto session = read_session(vm.directory);
  vmm::remove_dead_vsock(vm.record.config(), vm.directory);
  const WithoutWorker now = derive_without_worker(vm.record, session, death);
  if (now.drop_replica) return drop_incoming();
  if (vm.record.state() != v1::VM_INCOMING && now.state != v1::VM_UNSETTLED) {
    FVMM_TRY(remove_file(vm.directory / kPreviousFile));  // left over when fvmmd ended between two writes
  }
  if (now.state == vm.record.state() && now.detail == vm.record.detail()) return {};
  spdlog::info("VM {} is {}{}{}", vm.record.config().name(), state_text(now.state), now.detail.empty() ? "" : ": ",
               now.detail);
  return change([&](v1::VmRecord& record) {
    record.set_state(now.state);
    record.set_detail(now.detail);
    if (session) record.set_fencing_token(std::max(record.fencing_token(), session->fencing_token()));
    if (now.state == v1::VM_MOVED) record.set_moved_to(session->peer());
  });
}

}  // namespace fvmm::daemon
