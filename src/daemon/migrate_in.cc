// PeerListener::migrate_in(): a VM comes in.
//
//   Hello ─► session admitted ─► admission ─► claim ─► warm worker ─► INCOMING is durable ─► Worker/Receive with the
//   connection
//        └──────────────── any error here: REJECTED, nothing kept ────────────────┘             │
//   RUNNING durable, worker watched ◄── runs ──┤   refused or never prepared: replica dropped, MOVED record restored
//                                              └── no answer: UNSETTLED
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>

#include "daemon/incoming_vm.h"
#include "daemon/peer_listener.h"
#include "daemon/spawner.h"
#include "daemon/template_service.h"
#include "vmm/net_config.h"

namespace fvmm::daemon {
namespace {

constexpr std::uint32_t kTimeoutMs = 60'000;        // when the source names none
constexpr std::chrono::seconds kReceiveMargin{30};  // beyond the worker's own deadline
constexpr std::chrono::seconds kTakeWait{10};

Result<std::uint64_t> free_bytes(const std::filesystem::path& directory) {
  struct statvfs info {};
  if (::statvfs(directory.c_str(), &info) != 0) return Error(Errc::kIo, "statvfs " + directory.string(), errno);
  return static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace

Result<AdmissionSnapshot> PeerListener::snapshot(const v1::PeerHello& hello) const {
  AdmissionSnapshot host;
  for (const VmView& vm : context_.registry.list()) {
    const std::uint64_t token = std::max(vm.record.fencing_token(), vm.info.fencing_token());
    host.vms.push_back({vm.id, vm.record.config().name(), vm.state(), token, vm.moved_to()});
    if (vm.state() == v1::VM_INCOMING) host.incoming_bytes += vm.record.config().memory_bytes();
  }
  host.memory = FVMM_TRY(read_host_memory());
  host.state_free_bytes = FVMM_TRY(free_bytes(context_.state_directory));
  host.base = check_base(hello.template_(), hello.vm().memory_bytes(), context_.store);
  return host;
}

Status PeerListener::migrate_in(std::unique_ptr<net::Channel>& channel, const v1::PeerHello& hello) {
  const Id session = FVMM_TRY(Id::from_bytes(hello.session()), "session");
  if (!hello.test_hook().empty() && !context_.test_hooks) {
    return Error(Errc::kPermissionDenied, "test hooks need an fvmmd started with --test-hooks");
  }
  auto admitted = FVMM_TRY(context_.sessions.begin(session));
  const Admission admission = FVMM_TRY(admit(hello, FVMM_TRY(snapshot(hello))));
  if (const std::string skew = clock_skew(hello, system_clock().realtime_ns()); !skew.empty()) spdlog::warn("{}", skew);
  v1::VmRecord record = incoming_record(hello);
  v1::WorkerReceiveRequest request;
  if (!hello.template_().id().empty()) {
    const memory::TemplateInfo base = FVMM_TRY(find_base(hello.template_(), context_.store));
    *record.mutable_template_() = to_ref(base);
    request.set_template_directory(base.directory.string());  // removed meanwhile: the worker rejects it
    request.set_resident_file(base.resident_file.string());
  }
  auto nets = FVMM_TRY(vmm::open_nets(hello.vm()), "at the destination");
  Claim claim = FVMM_TRY(claim_incoming(context_.registry, hello, record, admission.returns));
  const Shape shape{hello.vm().memory_bytes(), hello.vm().vcpus()};
  const auto taken = FVMM_TRY(context_.pool.take(shape, Deadline::after(kTakeWait)));
  if (const Status begun = claim.begin_incoming(record); !begun) {
    end_worker(*taken.worker);
    return begun;
  }
  claim.attach(taken.worker, v1::WorkerInfo(), 0);
  admitted.assign(taken.worker);
  spdlog::info("VM {} comes in from {}, session {}{}", hello.vm().name(), hello.from(), session.hex(),
               taken.cold ? fmt::format(" (no warm worker fitted: {:.1f} ms)", taken.spawn_ms) : "");
  nets.insert(nets.begin(), std::move(*channel).release());
  channel.reset();
  *request.mutable_hello() = hello;
  receive(claim, taken.worker, std::move(nets), std::move(request));
  return {};
}

void PeerListener::receive(Claim& claim, const std::shared_ptr<WorkerProcess>& worker,
                           std::vector<UniqueFd> descriptors, v1::WorkerReceiveRequest request) {
  const v1::PeerHello& hello = request.hello();
  const std::string& name = hello.vm().name();
  request.set_vm_directory(claim.view().directory.string());
  const auto timeout = std::chrono::milliseconds(hello.timeout_ms() == 0 ? kTimeoutMs : hello.timeout_ms());
  const Deadline deadline = Deadline::after(timeout + kReceiveMargin).sooner(kIncomingWaitMax);
  const Status stream =
      worker->client()->receive(request, descriptors, context_.stop, deadline, [&](const v1::WorkerInfo& info) {
        claim.note(info);
        return true;
      });
  descriptors.clear();
  // On the way out the worker goes on by itself; the next fvmmd adopts it and sees how it ends.
  if (context_.stop.fired()) return;
  const Status settled = settle_incoming(
      claim, worker, stream, [this](const Id& id, auto one) { context_.supervisor.watch(id, std::move(one)); });
  if (!settled) spdlog::error("VM {}: {}", name, settled.error().message());
}

}  // namespace fvmm::daemon
