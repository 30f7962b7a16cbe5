// The Replications service: continuous templating of a VM to a peer, and its recovery there.
#pragma once

#include <functional>
#include <string>

#include "control/server.h"
#include "daemon/call_worker.h"
#include "daemon/registry.h"
#include "daemon/replica_stops.h"
#include "daemon/replicas.h"
#include "daemon/vm_service.h"
#include "memory/template_store.h"

namespace fvmm::daemon {

/// What a request must be before anything happens. kInvalidArgument names the value and the limit.
Status check_replicate(const v1::ReplicateRequest& request, bool test_hooks);

/// Whether KVM on this host offers what the machine has been told of its CPU. kFailedPrecondition names what is
/// missing.
Status check_cpu_here(const v1::MachineState& state);

/// Thread: any of the control server's.
class ReplicationService {
 public:
  struct Options {
    std::string listen;  // our peer listener, for the peer's records
    bool test_hooks = false;
    /// Whether this host's CPU can run a machine; empty: any.
    std::function<Status(const v1::MachineState&)> check_cpu{};
  };
  struct Parts {
    Registry& registry;
    memory::TemplateStore& store;
    Replicas& replicas;
    ReplicaStops& stops;
    VmService& vms;
  };
  ReplicationService(Parts parts, Options options) : parts_(parts), options_(std::move(options)) {}
  void bind(control::Server& server);

  /// Pushes the VM's template first where the peer lacks it.
  Result<v1::ReplicaStatus> start(const v1::ReplicateRequest& request, const Deadline& deadline);
  /// Gives the replica up: the peer drops it, at once or as soon as it can be told, which the answer's detail says.
  Result<v1::ReplicaStatus> stop(const std::string& vm);
  Result<v1::ReplicaStatus> status(const std::string& vm) const;
  /// Starts the VM here from its newest sealed generation. Refused while its source says that it runs there, and, when
  /// the source does not answer, unless somebody vouches for its death.
  Result<v1::RecoverReport> recover(const v1::RecoverRequest& request, const Deadline& deadline);

 private:
  Status push_base(const VmView& vm, const std::string& to, const Deadline& deadline) const;
  Result<v1::ReplicaStatus> end_in_worker(const VmView& vm) const;
  void say_stopped(const VmView& vm, const ReplicaStops::Outcome& outcome, v1::ReplicaStatus& last) const;
  Status check_source(const v1::ReplicaRecord& record, const v1::RecoverRequest& request) const;

  Parts parts_;
  const Options options_;
};

/// The VM was recovered at the peer of a replication that has ended here: it is fenced, if it still runs under that
/// right.
void fence_recovered(const Registry& registry, const v1::ReplicaStop& stop);

}  // namespace fvmm::daemon
