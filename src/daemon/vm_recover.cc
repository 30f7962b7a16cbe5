// VmService::recover(): the same VM, started here from a sealed generation.
#include <fmt/format.h>

#include "daemon/checks.h"
#include "daemon/records.h"
#include "daemon/template_service.h"
#include "daemon/vm_service.h"

namespace fvmm::daemon {

// The name and the id may be here already, from a time when the VM ran here and moved away.
Result<Claim> VmService::claim_recovered(const v1::VmConfig& config, std::uint64_t token_seen) {
  FVMM_TRY(check_fits(config, FVMM_TRY(read_host_memory())));
  const Id id = FVMM_TRY(Id::from_bytes(config.id()));
  if (!registry_.find(id)) {
    v1::VmRecord record;
    *record.mutable_config() = config;
    record.set_state(v1::VM_CREATED);
    auto claims = FVMM_TRY(registry_.reserve({record}, "recover"));
    return std::move(claims.front());
  }
  Claim claim = FVMM_TRY(registry_.claim(id, "recover"));
  const VmView here = claim.view();
  const v1::VmState state = here.state();
  if (state == v1::VM_MOVED && here.record.fencing_token() > token_seen) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {} has run here since that generation was taken, and moved to {}: look there",
                             config.name(), here.record.moved_to()));
  }
  const bool rests = state == v1::VM_MOVED || state == v1::VM_LOST || state == v1::VM_STOPPED ||
                     state == v1::VM_FAILED || state == v1::VM_CREATED;
  if (!here.worker && rests) return claim;
  return Error(Errc::kAlreadyExists, fmt::format("VM {} is here and {}", config.name(), state_text(state)));
}

Result<v1::VmInfo> VmService::recover(Claim& claim, const Recovery& recovery, const Deadline& deadline) {
  const SteadyTime accepted = std::chrono::steady_clock::now();
  v1::VmRecord record;
  *record.mutable_config() = recovery.generation.config;
  *record.mutable_template_() = to_ref(recovery.generation);
  record.set_state(v1::VM_CREATED);
  record.set_fencing_token(recovery.token);
  FVMM_TRY(claim.change([&](v1::VmRecord& known) { known = record; }));
  FVMM_TRY(launch(claim, accepted, deadline));
  VmView view = claim.view();
  view.busy.clear();
  return to_info(view);
}

}  // namespace fvmm::daemon
