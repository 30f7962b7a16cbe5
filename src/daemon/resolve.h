// Who may run a VM whose hand-over has no answer: the decision alone, without I/O.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "proto/peer.pb.h"
#include "proto/state.pb.h"

namespace fvmm::daemon {

/// What the peer says of the session. The destination runs the VM, can never run it, or nobody knows (also: not
/// reached).
enum class PeerOutcome : std::uint8_t { kStarted, kRefused, kUnknown };
PeerOutcome parse_outcome(const v1::SessionAnswer& answer);
/// What a settled or open record answers to a peer's question. Open is unknown: the worker, asked first, could not
/// tell.
v1::SessionAnswer answer_of(const v1::SessionRecord& record);

enum class Force : std::uint8_t { kNone, kStartHere, kDiscard };

enum class Resolution : std::uint8_t {
  kRunHere,       // the living worker resumes the VM (source) or starts the replica (destination)
  kMoved,         // source: the peer has it; what is left here is dropped
  kLost,          // the right to run is here, but the memory died with the worker
  kDropReplica,   // destination: the replica never runs here
  kStay,          // still unsettled
  kNothingToRun,  // --force-start-here without a worker: there is no memory to start from
};

struct ResolveInput {
  v1::SessionRole role = v1::SESSION_ROLE_NONE;  // NONE: the record cannot be read; treated as a source without answer
  PeerOutcome peer = PeerOutcome::kUnknown;
  bool worker_alive = false;
  Force force = Force::kNone;
};
/// Pure. Only the peer's word or a force gives the right to run; a definite word beats any force.
Resolution resolve(const ResolveInput& input);
/// True when the resolution rests on force alone, and another runner may exist.
bool by_force(const ResolveInput& input);
/// What the session record says afterwards; nothing while it stays open. On kRunHere the worker writes it.
std::optional<v1::SessionOutcome> outcome_after(Resolution resolution, v1::SessionRole role);

}  // namespace fvmm::daemon
