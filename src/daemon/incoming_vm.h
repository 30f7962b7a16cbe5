// What the registry learns of a VM that comes in, from its place among the VMs to what became of it.
#pragma once

#include <functional>
#include <memory>

#include "base/id.h"
#include "base/result.h"
#include "daemon/process.h"
#include "daemon/registry.h"
#include "proto/peer.pb.h"

namespace fvmm::daemon {

/// The record of the replica while it is not allowed to run.
v1::VmRecord incoming_record(const v1::PeerHello& hello);
/// A new VM, or, when it `returns`, the one that has moved from here. kAborted when that has changed meanwhile; errors
/// of Registry::reserve() and claim().
Result<Claim> claim_incoming(Registry& registry, const v1::PeerHello& hello, const v1::VmRecord& record, bool returns);

/// Supervisor::watch().
using WatchWorker = std::function<void(const Id&, std::shared_ptr<WorkerProcess>)>;
/// Receive has ended: RUNNING is durable and the worker watched; or it may still run, UNSETTLED; or it never ran here,
/// and what stood before the replica is back. `stream`: how Receive ended.
Status settle_incoming(Claim& claim, const std::shared_ptr<WorkerProcess>& worker, const Status& stream,
                       const WatchWorker& watch);

}  // namespace fvmm::daemon
