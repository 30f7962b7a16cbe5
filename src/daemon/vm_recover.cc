// VmService::recover(): the same VM, started here from a sealed generation.
#include <fmt/format.h>

#include "daemon/checks.h"
#include "daemon/records.h"
#include "daemon/template_service.h"
#include "daemon/vm_service.h"

namespace fvmm::daemon {

// The name and the id may be here already, from a time when the VM ran here and moved away.
Result<Claim> VmService::claim_recovered(const v1::VmRecord& record) {
  const Id id = FVMM_TRY(Id::from_bytes(record.config().id()));
  if (!registry_.find(id)) {
    auto claims = FVMM_TRY(registry_.reserve({record}, "recover"));
    return std::move(claims.front());
  }
  Claim claim = FVMM_TRY(registry_.claim(id, "recover"));
  const v1::VmState state = claim.view().state();
  if (!claim.view().worker && (state == v1::VM_MOVED || state == v1::VM_LOST || state == v1::VM_STOPPED)) return claim;
  return Error(Errc::kAlreadyExists, fmt::format("VM {} is here and {}", record.config().name(), state_text(state)));
}

Result<v1::VmInfo> VmService::recover(const Recovery& recovery, const Deadline& deadline) {
  const SteadyTime accepted = std::chrono::steady_clock::now();
  v1::VmRecord record;
  *record.mutable_config() = recovery.generation.config;
  *record.mutable_template_() = to_ref(recovery.generation);
  record.set_state(v1::VM_CREATED);
  record.set_fencing_token(recovery.token);
  FVMM_TRY(check_fits(record.config(), FVMM_TRY(read_host_memory())));
  Claim claim = FVMM_TRY(claim_recovered(record));
  FVMM_TRY(claim.change([&](v1::VmRecord& known) { known = record; }));
  FVMM_TRY(launch(claim, accepted, deadline));
  VmView view = claim.view();
  view.busy.clear();
  return to_info(view);
}

}  // namespace fvmm::daemon
