#include "daemon/registry.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/check.h"
#include "base/file.h"
#include "vmm/vsock_config.h"

namespace fvmm::daemon {

namespace fs = std::filesystem;

bool VmView::worker_decides() const {
  return record.state() != v1::VM_UNSETTLED && worker && info.state() != v1::VM_STATE_NONE;
}

v1::VmState VmView::state() const {
  return worker_decides() ? info.state() : record.state();
}

std::string VmView::moved_to() const {
  return worker_decides() ? info.moved_to() : record.moved_to();
}

v1::VmInfo to_info(const VmView& view) {
  v1::VmInfo out;
  *out.mutable_config() = view.record.config();
  out.set_state(view.state());
  out.set_detail(view.worker && !view.info.detail().empty() ? view.info.detail() : view.record.detail());
  if (out.detail().empty() && !view.busy.empty()) out.set_detail(view.busy + " is under way");
  *out.mutable_template_() = view.record.template_();
  out.set_fencing_token(std::max(view.record.fencing_token(), view.info.fencing_token()));
  out.set_moved_to(view.moved_to());
  out.set_start_ms(view.start_ms);
  if (const v1::VsockConfig* const vsock = vmm::vsock_of(view.record.config())) {
    out.mutable_vsock()->set_path(vmm::vsock_path(*vsock, view.directory).string());
    out.mutable_vsock()->set_cid(vmm::vsock_cid(*vsock));
  }
  if (!view.worker) return out;
  out.set_worker_pid(view.worker->pid());
  *out.mutable_template_() = view.info.template_();
  out.set_console_path(view.info.console_path());
  out.set_virtio_console_path(view.info.virtio_console_path());
  out.set_serial_bytes(view.info.serial_bytes());
  out.set_delta_pages(view.info.delta_pages());
  out.set_delta_unknown(view.info.delta_unknown());
  *out.mutable_nets() = view.info.nets();
  if (view.info.has_balloon()) *out.mutable_balloon() = view.info.balloon();
  if (view.info.has_vsock()) *out.mutable_vsock() = view.info.vsock();
  out.set_completed_instructions(view.info.completed_instructions());
  out.set_seccomp(view.info.seccomp());
  return out;
}

v1::VmInfo to_answer(const Claim& claim) {
  VmView view = claim.view();
  view.busy.clear();
  return to_info(view);
}

Result<std::unique_ptr<Registry>> Registry::open(const fs::path& state_directory, SessionLedger& ledger) {
  const fs::path directory = state_directory / "vms";
  FVMM_TRY(make_directories(directory), "registry");
  std::unique_ptr<Registry> registry(new Registry(directory, ledger));
  FVMM_TRY(registry->load(), "registry");
  return registry;
}

Status Registry::load() {
  std::error_code error;
  for (fs::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) {
    const auto id = Id::parse(it->path().filename().string());
    if (!id) continue;
    auto record = FVMM_TRY(read_vm_record(it->path() / kVmRecordFile));
    if (!record) continue;
    if (record->config().id() != id->raw()) {
      return Error(Errc::kDataLoss, fmt::format("{} holds the record of another VM", it->path().string()));
    }
    const std::string name = record->config().name();
    if (!by_name_.emplace(name, *id).second) {
      return Error(Errc::kDataLoss,
                   fmt::format("two VMs are named {}: {} and {}", name, id->hex(), by_name_[name].hex()));
    }
    Entry entry;
    entry.record = std::move(*record);
    entry.saved = true;
    vms_.emplace(*id, std::move(entry));
  }
  if (error) return Error(Errc::kIo, fmt::format("list {}", directory_.string()), error.value());
  return {};
}

VmView Registry::view_of(const Id& id, const Entry& entry) const {
  return {id, entry.record, entry.info, entry.worker, entry.busy, directory_of(id), entry.start_ms};
}

std::vector<VmView> Registry::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<VmView> views;
  for (const auto& [name, id] : by_name_) views.push_back(view_of(id, vms_.at(id)));
  return views;
}

Result<VmView> Registry::find(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) return Error(Errc::kNotFound, fmt::format("no VM is named \"{}\"", name));
  return view_of(it->second, vms_.at(it->second));
}

std::optional<VmView> Registry::find(const Id& id) const {
  const std::lock_guard lock(mutex_);
  const auto it = vms_.find(id);
  if (it == vms_.end()) return std::nullopt;
  return view_of(id, it->second);
}

Result<Claim> Registry::claim(const std::string& name, const std::string& what, Allow allow) {
  std::unique_lock lock(mutex_);
  const auto it = by_name_.find(name);
  if (it == by_name_.end()) return Error(Errc::kNotFound, fmt::format("no VM is named \"{}\"", name));
  return claim_locked(lock, it->second, what, allow);
}

Result<Claim> Registry::claim(const Id& id, const std::string& what, Allow allow) {
  std::unique_lock lock(mutex_);
  return claim_locked(lock, id, what, allow);
}

Result<Claim> Registry::claim_locked(std::unique_lock<std::mutex>& lock, const Id& id, const std::string& what,
                                     Allow allow) {
  // By value: `id` may live in the map that other threads change while we wait.
  const Id wanted = id;
  released_.wait_until(lock, Deadline::after(kInternalClaimWait).at(), [&] {
    const auto it = vms_.find(wanted);
    return it == vms_.end() || !it->second.internal || stopping_;
  });
  const auto it = vms_.find(wanted);
  if (it == vms_.end()) return Error(Errc::kNotFound, fmt::format("no VM has the id {}", wanted.hex()));
  Entry& entry = it->second;
  const std::string& name = entry.record.config().name();
  if (!entry.busy.empty()) {
    return Error(Errc::kFailedPrecondition, fmt::format("VM {}: {} is under way; wait for it", name, entry.busy));
  }
  const VmView view = view_of(wanted, entry);
  if (allow == Allow::kSettledOnly && view.state() == v1::VM_UNSETTLED) {
    const std::string detail = to_info(view).detail();
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {} is unsettled: {}", name,
                             detail.empty() ? fmt::format("run \"fvmmctl migrate resolve {}\"", name) : detail));
  }
  const bool in_transit = view.state() == v1::VM_INCOMING || view.state() == v1::VM_MIGRATING;
  if (allow == Allow::kSettledOnly && in_transit) {  // its worker goes on with what an earlier fvmmd began
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {} is {}; wait until that has ended", name, state_text(view.state())));
  }
  entry.busy = what;
  return Claim(*this, wanted);
}

std::optional<Claim> Registry::claim_for(const Id& id, const WorkerProcess& worker) {
  std::unique_lock lock(mutex_);
  const auto mine = [&] {
    const auto it = vms_.find(id);
    return it != vms_.end() && it->second.worker.get() == &worker;
  };
  released_.wait(lock, [&] { return stopping_ || !mine() || vms_.at(id).busy.empty(); });
  if (stopping_ || !mine()) return std::nullopt;
  Entry& entry = vms_.at(id);
  entry.busy = "noting what its worker reports";
  entry.internal = true;
  return Claim(*this, id);
}

Result<std::vector<Claim>> Registry::reserve(const std::vector<v1::VmRecord>& records, const std::string& what) {
  const std::lock_guard lock(mutex_);
  if (vms_.size() + records.size() > kVmsMax) {
    return Error(Errc::kResourceExhausted, fmt::format("a host keeps at most {} VMs", kVmsMax));
  }
  std::vector<Id> ids;
  for (const v1::VmRecord& record : records) {
    const Id id = FVMM_TRY(Id::from_bytes(record.config().id()), "VM id");
    if (const auto it = vms_.find(id); it != vms_.end()) {
      return Error(Errc::kAlreadyExists,
                   fmt::format("a VM with the id {} exists: {}", id.hex(), it->second.record.config().name()));
    }
    if (by_name_.contains(record.config().name())) {
      return Error(Errc::kAlreadyExists, fmt::format("a VM named {} exists", record.config().name()));
    }
    ids.push_back(id);
  }
  std::vector<Claim> claims;
  claims.reserve(records.size());
  for (std::size_t i = 0; i < records.size(); ++i) {
    Entry entry;
    entry.record = records[i];
    entry.busy = what;
    const bool fresh =
        by_name_.emplace(records[i].config().name(), ids[i]).second && vms_.emplace(ids[i], entry).second;
    FVMM_CHECK(fresh, "names and ids of one reservation differ");
    claims.push_back(Claim(*this, ids[i]));
  }
  return claims;
}

bool Registry::note(const Id& id, const WorkerProcess& worker, const v1::WorkerInfo& info) {
  const std::lock_guard lock(mutex_);
  const auto it = vms_.find(id);
  if (it == vms_.end() || it->second.worker.get() != &worker) return false;
  it->second.info = info;
  return true;
}

void Registry::store(const Id& id, const v1::VmRecord& record) {
  const std::lock_guard lock(mutex_);
  Entry& entry = vms_.at(id);
  entry.record = record;
  entry.saved = true;
}

void Registry::release(const Id& id) {
  const std::lock_guard lock(mutex_);
  const auto it = vms_.find(id);
  if (it != vms_.end()) {
    it->second.busy.clear();
    it->second.internal = false;
    if (!it->second.saved) {  // reserved, then given up
      std::error_code ignored;
      fs::remove_all(directory_of(id), ignored);
      by_name_.erase(it->second.record.config().name());
      vms_.erase(it);
    }
  }
  released_.notify_all();
}

void Registry::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  released_.notify_all();
}

Status Registry::adopt(const v1::WorkerInfo& info, std::shared_ptr<WorkerProcess> worker) {
  const Id id = FVMM_TRY(Id::from_bytes(info.config().id()), "adopt");
  if (!find(id)) {
    v1::VmRecord record;
    *record.mutable_config() = info.config();
    record.set_state(info.state());
    record.set_fencing_token(info.fencing_token());
    *record.mutable_template_() = info.template_();
    auto claims = FVMM_TRY(reserve({record}, "adopt"));
    FVMM_TRY(claims.front().change([](v1::VmRecord&) {}));
  }
  Claim adopted = FVMM_TRY(claim(id, "adopt", Allow::kUnsettled));
  const VmView view = adopted.view();
  if (view.worker) {
    return Error(Errc::kInternal, fmt::format("VM {} has two workers, {} and {}: end one of them",
                                              view.record.config().name(), view.worker->pid(), worker->pid()));
  }
  adopted.attach(std::move(worker), info, 0);
  return {};
}

Status Registry::sweep() {
  for (const VmView& view : list()) {
    if (view.worker) continue;
    Claim orphan = FVMM_TRY(claim(view.id, "settle", Allow::kUnsettled));
    FVMM_TRY(orphan.settle_without_worker(""), view.record.config().name());
  }
  std::error_code error;
  for (fs::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) {
    const auto id = Id::parse(it->path().filename().string());
    if (!id || find(*id)) continue;
    spdlog::info("removing {}: it has no VM record", it->path().string());
    std::error_code ignored;
    fs::remove_all(it->path(), ignored);
  }
  return {};
}

}  // namespace fvmm::daemon
