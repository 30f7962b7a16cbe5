// Continuous templating, the receiving side: generations are staged in RAM, checked, held, sealed, acknowledged. The
// store always has one whole generation of the VM, whatever becomes of the link. docs/replication.md.
#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "base/result.h"
#include "memory/template_store.h"
#include "migration/generation_line.h"
#include "migration/steps.h"
#include "net/stream.h"
#include "proto/peer.pb.h"

namespace fvmm::migration {

inline constexpr std::chrono::hours kReplicaIdleMax{1};  // without a generation; then the link is taken for dead
inline constexpr std::chrono::seconds kReplicaTransferWait{600};  // for the rest of a generation once it has begun
inline constexpr std::uint32_t kReplicaChainMax = 16;             // deltas on the template; then they become one

/// What the daemon gives to one receiving session.
struct ReplicaHost {
  memory::TemplateStore* store = nullptr;
  /// Runs a function while nobody can recover the VM. False, and the function does not run, once somebody has.
  std::function<bool(const std::function<void()>&)> unless_recovered;
  StepHook on_step;
};

/// Serves one connection until it ends, which is always an error: kUnavailable when the source closed it. The source
/// has been told of any other (REJECTED, FENCED). Removes generations that are no longer needed as it goes.
/// Thread: one for each connection; at most one for each VM (the caller sees to it).
Status receive_replica(net::Stream& stream, const v1::PeerHello& hello, const ReplicaHost& host);

}  // namespace fvmm::migration
