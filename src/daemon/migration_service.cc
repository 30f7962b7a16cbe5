#include "daemon/migration_service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "daemon/checks.h"
#include "daemon/spawner.h"
#include "daemon/template_service.h"
#include "memory/tracking.h"
#include "migration/generation_line.h"
#include "migration/source.h"
#include "vmm/disk_config.h"

namespace fvmm::daemon {
namespace {

constexpr const char* kMigrate = "migrate";
constexpr std::uint32_t kMaxDowntimeUs = 5'000;  // when the request names none
constexpr unsigned kPushesMax = 3;               // of what the peer lacks, in one migration

}  // namespace

Result<v1::MigrateRequest> check_migrate(const v1::MigrateRequest& request, bool test_hooks) {
  v1::MigrateRequest checked = request;
  const std::string& mode = request.mode();
  if (!mode.empty() && mode != "auto" && mode != "suspend" && mode != "precopy" && mode != "live") {
    return Error(Errc::kInvalidArgument,
                 fmt::format("unknown mode \"{}\"; there are auto, suspend, live and precopy", mode));
  }
  if (request.bandwidth_bytes_s() != 0 && request.bandwidth_bytes_s() < migration::kBandwidthMin) {
    return Error(Errc::kInvalidArgument, fmt::format("a bandwidth of {} bytes a second; at least {} (1Mbit)",
                                                     request.bandwidth_bytes_s(), migration::kBandwidthMin));
  }
  FVMM_TRY(parse_peer(request.to()));
  if (request.connections() > migration::kConnectionsMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("at most {} connections, not {}", migration::kConnectionsMax, request.connections()));
  }
  if (request.timeout_ms() > kMigrateTimeoutMsMax) {
    return Error(Errc::kInvalidArgument, fmt::format("a timeout of {} ms is more than 24 h", request.timeout_ms()));
  }
  if (!request.test_hook().empty() && !test_hooks) {
    return Error(Errc::kPermissionDenied, "test hooks need an fvmmd started with --test-hooks");
  }
  if (request.timeout_ms() == 0) checked.set_timeout_ms(kMigrateTimeoutMs);
  if (request.max_downtime_us() == 0) checked.set_max_downtime_us(kMaxDowntimeUs);
  return checked;
}

Result<v1::MigrateEvent> MigrationService::migrate(const v1::MigrateRequest& request,
                                                   const std::function<void(const v1::MigrateEvent&)>& progress) {
  const SteadyTime accepted = std::chrono::steady_clock::now();
  const v1::MigrateRequest checked = FVMM_TRY(check_migrate(request, options_.test_hooks));
  Claim claim = FVMM_TRY(registry_.claim(request.vm(), kMigrate));
  const VmView vm = claim.view();
  if (!vm.worker || (vm.state() != v1::VM_RUNNING && vm.state() != v1::VM_PAUSED)) {
    return Error(Errc::kFailedPrecondition, fmt::format("VM {} is {}: only a running or paused VM can migrate",
                                                        request.vm(), state_text(vm.state())));
  }
  FVMM_TRY(vmm::check_disks_travel(vm.record.config()));
  FVMM_TRY(claim.close_session(), request.vm());    // of the migration before, when the disk took no record then
  FVMM_TRY(claim.archive_session(), request.vm());  // its worker is about to overwrite session.pb
  const double before_ms = to_ms(std::chrono::steady_clock::now() - accepted);
  auto result = run(vm, checked, progress);
  for (unsigned i = 0; i < kPushesMax && template_is_missing(result, i > 0); ++i) {
    result = push_and_run(vm, checked, progress);
  }
  if (stop_.fired()) return Error(Errc::kUnavailable, "fvmmd is stopping; the worker goes on, see \"vm show\"");
  if (!result) {
    v1::MigrateResult none;
    FVMM_TRY(settle(claim, checked, none), result.error().message());
    if (none.result().empty()) return std::move(result.error()).with(fmt::format("migrate {}", request.vm()));
    none.set_error(result.error().message());
    result = std::move(none);
  } else {
    // The worker's clock starts when it gets the order; duration counts from the command.
    result->set_duration_ms(result->duration_ms() + before_ms);
    result->set_setup_ms(result->setup_ms() + before_ms);
    const Status settled = settle(claim, checked, *result);
    if (!settled && result->result() != "completed") return Error(settled.error()).with(request.vm());
    if (!settled)
      spdlog::error("VM {} has moved: {}; its worker stays until that is recorded", request.vm(),
                    settled.error().message());
  }
  spdlog::info("migrate {} to {}: {}{}{}, {:.2f} ms, downtime {:.2f} ms", request.vm(), request.to(), result->result(),
               result->error().empty() ? "" : ": ", result->error(), result->duration_ms(), result->downtime_ms());
  v1::MigrateEvent last;
  *last.mutable_result() = std::move(*result);
  return last;
}

// After a push, too: the peer may have tidied what it keeps of this VM meanwhile, also what the pushed one lies on.
bool MigrationService::template_is_missing(const Result<v1::MigrateResult>& result, bool pushed) const {
  if (stop_.fired()) return false;
  if (!result) return pushed && result.error().code() == Errc::kNotFound;
  return !result->template_().empty() && result->result() == "aborted" &&
         result->code() == static_cast<std::uint32_t>(Errc::kNotFound);
}

// The peer refused for want of the template: it travels first, while the guest runs on, and is reported apart.
Result<v1::MigrateResult> MigrationService::push_and_run(const VmView& vm, const v1::MigrateRequest& request,
                                                         const std::function<void(const v1::MigrateEvent&)>& progress) {
  const v1::TemplateRef base = FVMM_TRY(live_base(vm));
  const auto info = FVMM_TRY(store_.find(FVMM_TRY(Id::from_bytes(base.id())), FVMM_TRY(Id::from_bytes(base.digest()))),
                             "the template that the peer lacks");
  v1::MigrateEvent event;
  event.set_phase("pushing template " + info.name);
  progress(event);
  const auto on_progress = [&](const migration::PushProgress& at) {
    event.set_pages_sent(at.bytes_done / kPageBytes);
    event.set_pages_left((at.bytes_total - std::min(at.bytes_total, at.bytes_done)) / kPageBytes);
    progress(event);
    return !stop_.fired();
  };
  const Deadline deadline = Deadline::after(std::chrono::milliseconds(request.timeout_ms()));
  const auto pushed =
      FVMM_TRY(push_with_parents(store_, info, FVMM_TRY(parse_peer(request.to())), deadline, on_progress),
               "before the migration");
  spdlog::info("migrate {}: template {} pushed first, {:.1f} ms", request.vm(), info.name, pushed.duration_ms);
  auto result = FVMM_TRY(run(vm, request, progress));
  result.set_template_push_ms(pushed.duration_ms);
  result.set_template_push_bytes(pushed.bytes_sent);
  return result;
}

Result<v1::MigrateResult> MigrationService::run(const VmView& vm, const v1::MigrateRequest& request,
                                                const std::function<void(const v1::MigrateEvent&)>& progress) {
  v1::WorkerMigrateRequest work;
  *work.mutable_request() = request;
  work.set_store_directory(store_.directory().string());
  work.set_from(options_.listen);
  const Deadline deadline = Deadline::after(std::chrono::milliseconds(request.timeout_ms()) + kMigrateMargin);
  std::optional<v1::MigrateResult> result;
  const Status status = vm.worker->client()->migrate(work, stop_, deadline, [&](const v1::MigrateEvent& event) {
    if (event.has_result()) {
      result = event.result();
    } else {
      progress(event);
    }
    return true;
  });
  if (result) return std::move(*result);
  if (!status) return status.error();
  return Error(Errc::kInternal, "the worker ended the migration without a result");
}

/// Makes the VM's record say what the hand-over came to. Leaves result.result() empty when the VM is simply still here.
Status MigrationService::settle(Claim& claim, const v1::MigrateRequest& request, v1::MigrateResult& result) {
  const VmView vm = claim.view();
  if (result.result() == "completed") return leave(claim, request.to(), result);
  if (vm.worker->wait_exit(Deadline::after(std::chrono::milliseconds(0)))) {
    FVMM_TRY(claim.settle_without_worker(vm.worker->how_it_ended()));  // else its watch tries again
    claim.detach();
    vm.worker->remove_files();
    const v1::VmState now = claim.view().record.state();
    if (now == v1::VM_MOVED) result.set_result("completed");
    if (now == v1::VM_UNSETTLED) result.set_result("unknown");
    return {};
  }
  const auto info = vm.worker->client()->info(Deadline::after(kInfoWait));
  if (info) claim.note(*info);
  const Status closed = claim.close_session();
  if (!closed) spdlog::error("VM {}: end of the hand-over: {}", request.vm(), closed.error().message());
  const auto session = read_session(vm.directory);
  const bool open = is_open(session);
  const bool moved = session && session->role() == v1::ROLE_LEAVING && session->outcome() == v1::OUTCOME_STARTED;
  if (info && info->state() == v1::VM_MOVED && moved) {
    result.set_result("completed");
    return leave(claim, request.to(), result);
  }
  if (result.result() == "unknown" || open || (info && info->state() == v1::VM_UNSETTLED)) {
    result.set_result("unknown");
    return claim.change([&](v1::VmRecord& record) {
      record.set_state(v1::VM_UNSETTLED);
      record.set_detail(fmt::format("{} has not answered whether it runs this VM; run \"fvmmctl migrate resolve {}\"",
                                    request.to(), request.vm()));
    });
  }
  // A worker too busy to say is left to its watch, which reports its state as soon as it can.
  if (!info || info->state() == vm.record.state() || info->state() == v1::VM_MIGRATING) return {};
  return claim.change([&](v1::VmRecord& record) {
    record.set_state(info->state());
    record.set_detail(info->detail());
  });
}

Status MigrationService::leave(Claim& claim, const std::string& peer, v1::MigrateResult& result) {
  const SteadyTime started = std::chrono::steady_clock::now();
  // The worker's word, where it could not write it: once the worker is gone, nobody here would know. Until this works
  // the worker stays, and answers.
  FVMM_TRY(claim.close_session(), "the VM has moved, but the end of the hand-over cannot be recorded");
  const auto session = read_session(claim.view().directory);
  FVMM_TRY(claim.change([&](v1::VmRecord& record) {
    record.set_state(v1::VM_MOVED);
    record.set_detail("");
    record.set_moved_to(peer);
    if (session) record.set_fencing_token(std::max(record.fencing_token(), session->fencing_token()));
  }));
  if (auto worker = claim.detach()) {
    const v1::VmConfig config = claim.view().record.config();
    const bool on_template = result.mode() != "precopy" && !result.template_().empty();
    // Under `scan` the peer counts nothing from the first entry on: nothing kept here would make the way back shorter.
    const bool counted = config.tracking() != to_string(memory::Tracking::kScan);
    if (on_template && counted) {
      result.set_way_back(migration::way_back_line(config));
      way_backs_.begin(std::move(worker), config);
    } else {
      end_worker(*worker);
    }
  }
  result.set_teardown_ms(result.teardown_ms() + to_ms(std::chrono::steady_clock::now() - started));
  return {};
}

Status MigrationService::cancel(const std::string& name) {
  const VmView vm = FVMM_TRY(registry_.find(name));
  const bool migrating = vm.busy == kMigrate || vm.state() == v1::VM_MIGRATING;
  if (!migrating || !vm.worker) {
    return Error(Errc::kFailedPrecondition, fmt::format("VM {} is not migrating", name));
  }
  return vm.worker->client()->cancel_migration(Deadline::after(kInfoWait));
}

void MigrationService::bind(control::Server& server) {
  using control::Call;
  server.stream<v1::MigrateRequest, v1::MigrateEvent>(
      "fvmm.v1.Migrations/Migrate", [this](Call& call, const v1::MigrateRequest& request) {
        return migrate(request, [&call](const v1::MigrateEvent& event) {
          if (!call.cancelled()) (void)call.send(event);  // a client that went away does not end the migration
        });
      });
  server.unary<v1::VmName, v1::Empty>("fvmm.v1.Migrations/Cancel",
                                      [this](Call&, const v1::VmName& request) -> Result<v1::Empty> {
                                        FVMM_TRY(cancel(request.name()));
                                        return v1::Empty();
                                      });
  server.unary<v1::ResolveRequest, v1::ResolveReport>(
      "fvmm.v1.Migrations/Resolve", [this](Call&, const v1::ResolveRequest& request) { return resolve(request); });
}

}  // namespace fvmm::daemon
