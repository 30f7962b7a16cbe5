// VmService::recover(): the same VM, started here from a sealed generation.
#include <fmt/format.h>

#include "base/file.h"
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
                             config.name(), here.moved_to()));
  }
  const bool rests = state == v1::VM_MOVED || state == v1::VM_LOST || state == v1::VM_STOPPED ||
                     state == v1::VM_FAILED || state == v1::VM_CREATED;
  if (!here.worker && rests) return claim;
  return Error(Errc::kAlreadyExists, fmt::format("VM {} is here and {}", config.name(), state_text(state)));
}

Result<v1::VmInfo> VmService::recover(Claim& claim, const Recovery& recovery, Provisions provisions,
                                      const Deadline& deadline) {
  const std::string& name = recovery.config.name();
  v1::VmRecord record;
  *record.mutable_config() = recovery.config;
  *record.mutable_template_() = to_ref(recovery.generation);
  record.set_state(v1::VM_CREATED);
  record.set_fencing_token(recovery.token);
  if (const Status saved = claim.change([&](v1::VmRecord& known) { known = record; }); !saved) {
    return Error(saved.error().code(), fmt::format("VM {0} is this host's now, and could not be recorded ({1}): repair "
                                                   "that, then \"fvmmctl replicate recover {0}\" again",
                                                   name, saved.error().message()));
  }
  // What it was replicated to from here was under an older right, and nobody need look there before a "vm start".
  for (const char* stale : {kReplicaFile, kReplicaStopFile}) (void)remove_file(claim.view().directory / stale);
  provisions.from = recovery.generation;
  if (const Status started = launch(claim, std::move(provisions), recovery.accepted, deadline); !started) {
    return Error(started.error().code(), fmt::format("VM {0} is this host's now, and did not start ({1}): repair that, "
                                                     "then \"fvmmctl vm start {0}\"",
                                                     name, started.error().message()));
  }
  return to_answer(claim);
}

}  // namespace fvmm::daemon
