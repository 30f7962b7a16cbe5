// MigrationService::resolve(): asks the peer, decides (resolve.h), carries it out.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/file.h"
#include "daemon/migration_service.h"
#include "daemon/spawner.h"
#include "daemon/template_service.h"
#include "migration/source.h"
#include "migration/transport.h"

namespace fvmm::daemon {
namespace {

constexpr std::chrono::seconds kSettleWait{30};

std::string outcome_text(Resolution resolution) {
  switch (resolution) {
    case Resolution::kRunHere:
      return "runs here";
    case Resolution::kMoved:
      return "moved";
    case Resolution::kLost:
      return "lost";
    case Resolution::kDropReplica:
      return "replica dropped";
    case Resolution::kStay:
    case Resolution::kNothingToRun:
      break;
  }
  return "unsettled";
}

Result<Force> parse_force(const v1::ResolveRequest& request) {
  if (request.force_start_here() && request.force_discard()) {
    return Error(Errc::kInvalidArgument, "--force-start-here and --force-discard exclude each other");
  }
  if (request.force_start_here()) return Force::kStartHere;
  return request.force_discard() ? Force::kDiscard : Force::kNone;
}

}  // namespace

Result<v1::SessionAnswer> ask_peer(const v1::SessionRecord& session) {
  migration::TcpTransport transport(FVMM_TRY(parse_peer(session.peer())));
  const Id id = FVMM_TRY(Id::from_bytes(session.session()), "session");
  return migration::ask_session(transport, id, session.vm(), Deadline::after(kAskPeerWait));
}

Result<v1::ResolveReport> MigrationService::resolve(const v1::ResolveRequest& request) {
  const Force force = FVMM_TRY(parse_force(request));
  Claim claim = FVMM_TRY(registry_.claim(request.vm(), "migrate resolve", Registry::Allow::kUnsettled));
  const VmView vm = claim.view();
  if (vm.state() != v1::VM_UNSETTLED) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {} is {}: there is nothing to resolve", request.vm(), state_text(vm.state())));
  }
  const v1::SessionRecord session = read_session(vm.directory).value_or(v1::SessionRecord());
  v1::SessionAnswer answer = answer_of(session);  // a record settled meanwhile speaks for itself
  if (session.outcome() == v1::OUTCOME_OPEN && session.role() != v1::SESSION_ROLE_NONE) {
    auto asked = options_.ask(session);
    answer = asked ? std::move(*asked) : v1::SessionAnswer();
    if (!asked) answer.set_detail(asked.error().message());
  }
  const ResolveInput input{session.role(), parse_outcome(answer), vm.worker && vm.worker->alive(), force};
  const Resolution resolution = daemon::resolve(input);
  if (resolution == Resolution::kNothingToRun) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {}: its worker is gone and with it the memory, nothing can be started here; "
                             "--force-discard gives it up",
                             request.vm()));
  }
  if (by_force(input)) {
    spdlog::warn("VM {}: resolved by force ({}) without an answer from {}: this may make two runners", request.vm(),
                 force == Force::kStartHere ? "start here" : "discard", session.peer());
  }
  v1::ResolveReport report;
  report.set_outcome(outcome_text(resolution));
  report.set_detail(answer.detail());
  FVMM_TRY(carry_out(claim, resolution, session), request.vm());
  // Asked through the registry: a dropped replica may be no VM any more.
  VmView after = claim.view();
  after.busy.clear();
  *report.mutable_vm() = to_info(after);
  return report;
}

Status MigrationService::carry_out(Claim& claim, Resolution resolution, const v1::SessionRecord& session) {
  const VmView vm = claim.view();
  if (resolution == Resolution::kStay) return {};
  if (resolution == Resolution::kRunHere) {
    const auto info = FVMM_TRY(vm.worker->client()->settle(true, Deadline::after(kSettleWait)));
    claim.note(info);
    return claim.finish_incoming([&](v1::VmRecord& record) {
      record.set_state(info.state());
      record.set_detail("");
      record.set_fencing_token(std::max(record.fencing_token(), info.fencing_token()));
    });
  }
  if (vm.worker) {
    const auto let_go = vm.worker->client()->settle(false, Deadline::after(kSettleWait));
    // One that refuses to let go may know better (the guest has started): it is not killed, the VM stays unsettled.
    if (!let_go && vm.worker->alive()) return let_go.error();
    end_worker(*claim.detach());
  }
  if (session.role() == v1::SESSION_ROLE_NONE) {
    FVMM_TRY(remove_file(vm.directory / kSessionFile));
  } else {
    v1::SessionRecord settled = session;
    settled.set_outcome(outcome_after(resolution, session.role()).value_or(v1::OUTCOME_OPEN));
    FVMM_TRY(write_session(vm.directory, settled));
  }
  return claim.settle_without_worker("");
}

}  // namespace fvmm::daemon
