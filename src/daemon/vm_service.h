// The Vms service: what a person does with one VM on this host.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "control/server.h"
#include "daemon/cpu_templates.h"
#include "daemon/pool.h"
#include "daemon/provisions.h"
#include "daemon/registry.h"
#include "daemon/supervisor.h"
#include "memory/template_store.h"
#include "proto/control.pb.h"

namespace fvmm::daemon {

inline constexpr unsigned kClonesMax = 256;      // of one command
inline constexpr unsigned kStartThreadsMax = 8;  // clones started at once

/// How its writes are tracked, if the config leaves that to the host: it goes with the VM to hosts whose default is
/// another.
void write_down_tracking(v1::VmConfig& config);

/// Owner: the daemon. Thread: any; the VM's Claim keeps commands on one VM apart.
class VmService {
 public:
  VmService(Registry& registry, WorkerPool& pool, Supervisor& supervisor, const memory::TemplateStore& store,
            const CpuTemplates& cpus, bool test_hooks)
      : registry_(registry),
        pool_(pool),
        supervisor_(supervisor),
        store_(store),
        cpus_(cpus),
        test_hooks_(test_hooks) {}

  void bind(control::Server& server);

  Result<v1::VmInfo> create(const v1::CreateVmRequest& request, const Deadline& deadline);
  Result<v1::VmInfo> start(const std::string& name, const Deadline& deadline);
  Result<v1::VmInfo> pause(const std::string& name, const Deadline& deadline);
  Result<v1::VmInfo> resume(const std::string& name, const Deadline& deadline);
  Result<v1::VmInfo> stop(const std::string& name);
  /// Tells the guest, and does not wait until it has given up so much.
  Result<v1::VmInfo> balloon(const v1::BalloonRequest& request, const Deadline& deadline);
  Status remove(const std::string& name);
  [[nodiscard]] v1::VmList list() const;
  Result<v1::VmInfo> show(const std::string& name) const;
  Result<v1::VmList> clone(const v1::CloneRequest& request, const Deadline& deadline);
  Status poke(const v1::PokeRequest& request, const Deadline& deadline);

  /// Room for a VM that is about to be recovered, and nothing of it running here. `token_seen`: of its generation.
  /// kFailedPrecondition when the VM ran here after the generation and moved away; kAlreadyExists.
  Result<Claim> claim_recovered(const v1::VmConfig& config, std::uint64_t token_seen);
  struct Recovery {
    v1::VmConfig config;              // the VM's, with its networks where they are here
    memory::TemplateInfo generation;  // of the VM, sealed here
    std::uint64_t token = 0;          // the right to run, already taken durably
    SteadyTime accepted;              // the command
  };
  /// The same VM (id and name), run from a generation. Nobody else may run it any more: what fails here is to be
  /// repaired, as the error says. When only the start fails the VM stays here, created, for "vm start".
  Result<v1::VmInfo> recover(Claim& claim, const Recovery& recovery, Provisions provisions, const Deadline& deadline);
  /// Whatever may refuse a start is asked here, before anything depends on it: kernel or template, disks, networks, a
  /// worker. Layers of disks that are to be made are made.
  Result<Provisions> provide(const v1::VmRecord& record, const Deadline& deadline);

  /// Serial output from an offset on; with `follow` until the VM's worker has ended, or `left` says the reader has.
  Result<v1::LogChunk> logs(const v1::LogsRequest& request, const std::function<Status(const v1::LogChunk&)>& send,
                            const std::function<bool()>& left);

 private:
  /// Runs the claimed VM: from its template if it came from one and its disks are as that has them, else from its
  /// kernel.
  Status launch(Claim& claim, SteadyTime accepted, const Deadline& deadline);
  Status launch(Claim& claim, Provisions provisions, SteadyTime accepted, const Deadline& deadline);
  /// Nobody else has them, and layers to be made are made. `from`: the template it starts from, if any.
  Status ready_disks(const v1::VmConfig& config, const memory::TemplateInfo* from) const;
  Result<std::vector<v1::VmRecord>> clone_records(const v1::CloneRequest& request) const;
  Status launch_all(std::vector<Claim>& claims, SteadyTime accepted, const Deadline& deadline);

  Registry& registry_;
  WorkerPool& pool_;
  Supervisor& supervisor_;
  const memory::TemplateStore& store_;
  const CpuTemplates& cpus_;
  const bool test_hooks_;
};

}  // namespace fvmm::daemon
