#include "daemon/vm_service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "daemon/call_worker.h"
#include "daemon/checks.h"
#include "daemon/clone_disks.h"
#include "daemon/disk_files.h"
#include "daemon/spawner.h"
#include "memory/tracking.h"
#include "vmm/net_config.h"

namespace fvmm::daemon {
namespace {

constexpr std::chrono::seconds kShowWait{1};  // for a worker's live figures; without them the last report is shown

Status check_startable(const VmView& vm) {
  const std::string& name = vm.record.config().name();
  const v1::VmState state = vm.state();
  switch (state) {
    case v1::VM_CREATED:
    case v1::VM_STOPPED:
    case v1::VM_LOST:
    case v1::VM_FAILED:
      break;
    case v1::VM_PAUSED:
      return Error(Errc::kFailedPrecondition, fmt::format("VM {0} is paused: \"vm resume {0}\"", name));
    case v1::VM_MOVED:
      return Error(Errc::kFailedPrecondition, fmt::format("VM {} moved to {} and runs there", name, vm.moved_to()));
    default:
      return Error(Errc::kFailedPrecondition, fmt::format("VM {} is {}", name, state_text(state)));
  }
  if (std::error_code ignored; std::filesystem::exists(vm.directory / kReplicaFile, ignored)) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {0} was being replicated, and the peer may have recovered it: look there first; if it "
                             "does not run there, give the replica up with \"replicate stop {0}\"",
                             name));
  }
  const auto session = read_session(vm.directory);
  if (vm.worker || is_open(session)) {
    return Error(Errc::kFailedPrecondition, fmt::format("VM {0} is not settled: \"migrate resolve {0}\"", name));
  }
  return {};
}

Result<std::shared_ptr<WorkerProcess>> running_worker(const VmView& vm) {
  if (vm.worker) return vm.worker;
  return Error(Errc::kFailedPrecondition,
               fmt::format("VM {} is not running, it is {}", vm.record.config().name(), state_text(vm.state())));
}

/// Whether a VM that came from the template starts there again. Not once it has written to its disks, or where only its
/// memory was kept: the template remembers other disks, and a start is what it is for any machine, from the kernel.
Result<bool> starts_from(const memory::TemplateInfo& from, const v1::VmRecord& record) {
  if (!holds_disks(from)) return false;
  if (record.state() == v1::VM_CREATED) return true;  // what stands where its disks are to be made is refused
  return are_untouched(record.config(), from);
}

Result<v1::WorkerInfo> start_in(const Provisions& provisions, const VmView& vm, const Deadline& deadline) {
  const auto client = provisions.taken.worker->client();
  if (!provisions.from) {
    v1::WorkerBootRequest request;
    *request.mutable_config() = vm.record.config();
    request.set_vm_directory(vm.directory.string());
    request.set_fencing_token(vm.record.fencing_token());
    request.set_run(true);
    return client->boot(request, provisions.nets, deadline);
  }
  v1::WorkerCloneRequest request;
  *request.mutable_config() = vm.record.config();
  request.set_vm_directory(vm.directory.string());
  request.set_template_directory(provisions.from->directory.string());
  request.set_resident_file(provisions.from->resident_file.string());
  request.set_fencing_token(vm.record.fencing_token());
  request.set_run(true);
  return client->clone(request, provisions.nets, deadline);
}

}  // namespace

void write_down_tracking(v1::VmConfig& config) {
  if (config.tracking().empty()) config.set_tracking(std::string(to_string(memory::kDefaultTracking)));
}

Result<v1::VmInfo> VmService::create(const v1::CreateVmRequest& request, const Deadline& deadline) {
  const SteadyTime accepted = std::chrono::steady_clock::now();
  v1::VmRecord record;
  *record.mutable_config() = request.config();
  record.mutable_config()->set_id(Id::random().raw());
  if (record.config().acpi()) record.mutable_config()->set_generation_id(Id::random().raw());
  write_down_tracking(*record.mutable_config());
  vmm::give_macs(*record.mutable_config());
  record.set_state(v1::VM_CREATED);
  record.set_fencing_token(1);
  FVMM_TRY(cpus_.settle(*record.mutable_config()));
  FVMM_TRY(check_config(record.config()));
  FVMM_TRY(check_fits(record.config(), FVMM_TRY(read_host_memory())));
  FVMM_TRY(check_files(record.config()));
  FVMM_TRY(check_disk_files(record.config()));
  auto claims = FVMM_TRY(registry_.reserve({record}, "create"));
  if (request.start()) {
    FVMM_TRY(launch(claims.front(), accepted, deadline), record.config().name());
  } else {
    FVMM_TRY(claims.front().change([](v1::VmRecord&) {}));
  }
  return to_answer(claims.front());
}

Result<v1::VmInfo> VmService::start(const std::string& name, const Deadline& deadline) {
  const SteadyTime accepted = std::chrono::steady_clock::now();
  Claim claim = FVMM_TRY(registry_.claim(name, "start"));
  const VmView view = claim.view();
  FVMM_TRY(check_startable(view));
  FVMM_TRY(check_fits(view.record.config(), FVMM_TRY(read_host_memory())));
  FVMM_TRY(launch(claim, accepted, deadline), name);
  return to_answer(claim);
}

Status VmService::ready_disks(const v1::VmConfig& config, const memory::TemplateInfo* from) const {
  if (config.disks().empty()) return {};
  FVMM_TRY(check_disk_files(config));
  FVMM_TRY(check_disks_free(config, registry_.list()));
  return from != nullptr ? make_clone_disks(config, *from) : make_disk_layers(config);
}

Result<Provisions> VmService::provide(const v1::VmRecord& record, const Deadline& deadline) {
  Provisions out;
  const v1::TemplateRef& from = record.template_();
  if (!from.id().empty()) {
    const Id id = FVMM_TRY(Id::from_bytes(from.id()), "template id");
    const memory::Digest digest = FVMM_TRY(Id::from_bytes(from.digest()), "template digest");
    out.from = FVMM_TRY(store_.find(id, digest), fmt::format("template {}", from.name()));
    if (!FVMM_TRY(starts_from(*out.from, record))) out.from.reset();
  }
  if (!out.from) FVMM_TRY(check_files(record.config()));
  FVMM_TRY(ready_disks(record.config(), out.from ? &*out.from : nullptr));
  out.nets = FVMM_TRY(vmm::open_nets(record.config()));
  out.taken = FVMM_TRY(pool_.take({record.config().memory_bytes(), record.config().vcpus()}, deadline));
  return out;
}

Status VmService::launch(Claim& claim, SteadyTime accepted, const Deadline& deadline) {
  FVMM_TRY(claim.make_directory());  // a clone's disks may lie there
  return launch(claim, FVMM_TRY(provide(claim.view().record, deadline)), accepted, deadline);
}

// On any error the provisions end the worker, also when only its answer is missing: it is gone before anyone may start
// this VM again.
Status VmService::launch(Claim& claim, Provisions provisions, SteadyTime accepted, const Deadline& deadline) {
  const VmView vm = claim.view();
  FVMM_TRY(claim.make_directory());
  const double before_ms = to_ms(std::chrono::steady_clock::now() - accepted);
  const auto info = FVMM_TRY(start_in(provisions, vm, deadline));
  // The record follows the start: a restart in between finds the VM in its worker.
  claim.attach(provisions.taken.worker, info, before_ms + info.start_ms());
  const Status saved = claim.change([&](v1::VmRecord& record) {
    record.set_state(info.state());
    record.set_detail("");
  });
  if (!saved) {
    claim.detach();
    return saved;
  }
  const auto taken = std::exchange(provisions.taken, {});
  spdlog::info("VM {} runs in worker {}{}, {:.1f} ms", vm.record.config().name(), taken.worker->pid(),
               taken.cold ? " (no warm one fitted)" : "", before_ms + info.start_ms());
  supervisor_.watch(claim.id(), taken.worker);
  return {};
}

Result<v1::VmInfo> VmService::pause(const std::string& name, const Deadline& deadline) {
  Claim claim = FVMM_TRY(registry_.claim(name, "pause"));
  const auto worker = FVMM_TRY(running_worker(claim.view()));
  const auto info = FVMM_TRY(worker->client()->pause(deadline), name);
  claim.note(info);
  FVMM_TRY(claim.change([&](v1::VmRecord& record) { record.set_state(info.state()); }));
  return to_answer(claim);
}

Result<v1::VmInfo> VmService::resume(const std::string& name, const Deadline& deadline) {
  Claim claim = FVMM_TRY(registry_.claim(name, "resume"));
  const auto worker = FVMM_TRY(running_worker(claim.view()));
  const auto info = FVMM_TRY(worker->client()->resume(deadline), name);
  claim.note(info);
  FVMM_TRY(claim.change([&](v1::VmRecord& record) { record.set_state(info.state()); }));
  return to_answer(claim);
}

Result<v1::VmInfo> VmService::balloon(const v1::BalloonRequest& request, const Deadline& deadline) {
  Claim claim = FVMM_TRY(registry_.claim(request.name(), "balloon"));
  const auto worker = FVMM_TRY(running_worker(claim.view()));
  claim.note(FVMM_TRY(worker->client()->balloon(request, deadline), request.name()));
  return to_answer(claim);
}

Result<v1::VmInfo> VmService::stop(const std::string& name) {
  Claim claim = FVMM_TRY(registry_.claim(name, "stop"));
  FVMM_TRY(running_worker(claim.view()));
  const auto worker = claim.detach();
  end_worker(*worker);
  FVMM_TRY(claim.change([&](v1::VmRecord& record) {
    record.set_state(v1::VM_STOPPED);
    record.set_detail("");
  }));
  return to_answer(claim);
}

Status VmService::remove(const std::string& name) {
  Claim claim = FVMM_TRY(registry_.claim(name, "rm"));
  const VmView vm = claim.view();
  if (vm.worker) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {} is {}: stop it first (\"vm stop {}\")", name, state_text(vm.state()), name));
  }
  return claim.remove();
}

v1::VmList VmService::list() const {
  v1::VmList out;
  for (const VmView& view : registry_.list()) *out.add_vms() = to_info(view);
  return out;
}

Result<v1::VmInfo> VmService::show(const std::string& name) const {
  VmView view = FVMM_TRY(registry_.find(name));
  if (view.worker) {
    auto live = view.worker->client()->info(Deadline::after(kShowWait));
    if (live) view.info = std::move(*live);
  }
  return to_info(view);
}

Status VmService::poke(const v1::PokeRequest& request, const Deadline& deadline) {
  if (!test_hooks_) return Error(Errc::kPermissionDenied, "poke is a test hook: start fvmmd with --test-hooks");
  Claim claim = FVMM_TRY(registry_.claim(request.name(), "poke"));
  const auto worker = FVMM_TRY(running_worker(claim.view()));
  return worker->client()->poke(request, deadline);
}

}  // namespace fvmm::daemon
