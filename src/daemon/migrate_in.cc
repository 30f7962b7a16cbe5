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

#include "daemon/peer_listener.h"
#include "daemon/spawner.h"
#include "daemon/template_service.h"

namespace fvmm::daemon {
namespace {

constexpr std::uint32_t kTimeoutMs = 60'000;        // when the source names none
constexpr std::chrono::seconds kReceiveMargin{30};  // beyond the worker's own deadline
constexpr std::chrono::seconds kTakeWait{10};
constexpr std::chrono::seconds kInfoWait{10};
constexpr std::chrono::milliseconds kDyingWait{500};

bool runs(v1::VmState state) {
  return state == v1::VM_RUNNING || state == v1::VM_PAUSED;
}

v1::VmRecord incoming_record(const v1::PeerHello& hello) {
  v1::VmRecord record;
  *record.mutable_config() = hello.vm();
  record.set_state(v1::VM_INCOMING);
  record.set_detail(fmt::format("coming in from {}", hello.from()));
  *record.mutable_template_() = hello.template_();
  record.set_fencing_token(hello.fencing_token());
  return record;
}

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
    host.vms.push_back({vm.id, vm.record.config().name(), vm.state(), token, vm.record.moved_to()});
    if (vm.state() == v1::VM_INCOMING) host.incoming_bytes += vm.record.config().memory_bytes();
  }
  host.memory = FVMM_TRY(read_host_memory());
  host.state_free_bytes = FVMM_TRY(free_bytes(context_.state_directory));
  host.base = check_base(hello.template_(), hello.vm().memory_bytes(), context_.store);
  return host;
}

Result<Claim> PeerListener::claim_incoming(const v1::PeerHello& hello, const v1::VmRecord& record, bool returns) {
  constexpr const char* kWhat = "migrate in";
  if (!returns) {
    auto claims = FVMM_TRY(context_.registry.reserve({record}, kWhat));
    return std::move(claims.front());
  }
  Claim claim = FVMM_TRY(context_.registry.claim(FVMM_TRY(Id::from_bytes(hello.vm().id())), kWhat));
  if (claim.view().record.state() == v1::VM_MOVED) return claim;
  return Error(Errc::kAborted, fmt::format("VM {} has changed here meanwhile", hello.vm().name()));
}

Status PeerListener::migrate_in(std::unique_ptr<net::Channel>& channel, const v1::PeerHello& hello) {
  const Id session = FVMM_TRY(Id::from_bytes(hello.session()), "session");
  if (!hello.test_hook().empty() && !context_.test_hooks) {
    return Error(Errc::kPermissionDenied, "test hooks need an fvmmd started with --test-hooks");
  }
  auto admitted = FVMM_TRY(context_.sessions.begin(session));
  const Admission admission = FVMM_TRY(admit(hello, FVMM_TRY(snapshot(hello))));
  v1::VmRecord record = incoming_record(hello);
  v1::WorkerReceiveRequest request;
  if (!hello.template_().id().empty()) {
    const memory::TemplateInfo base = FVMM_TRY(find_base(hello.template_(), context_.store));
    *record.mutable_template_() = to_ref(base);
    request.set_template_directory(base.directory.string());  // removed meanwhile: the worker rejects it
    request.set_resident_file(base.resident_file.string());
  }
  Claim claim = FVMM_TRY(claim_incoming(hello, record, admission.returns));
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
  UniqueFd connection = std::move(*channel).release();
  channel.reset();
  *request.mutable_hello() = hello;
  receive(claim, taken.worker, std::move(connection), std::move(request));
  return {};
}

void PeerListener::receive(Claim& claim, const std::shared_ptr<WorkerProcess>& worker, UniqueFd connection,
                           v1::WorkerReceiveRequest request) {
  const v1::PeerHello& hello = request.hello();
  const std::string& name = hello.vm().name();
  request.set_vm_directory(claim.view().directory.string());
  const auto timeout = std::chrono::milliseconds(hello.timeout_ms() == 0 ? kTimeoutMs : hello.timeout_ms());
  const Deadline deadline = Deadline::after(timeout + kReceiveMargin).sooner(kIncomingWaitMax);
  const Status stream =
      WorkerClient(worker->socket())
          .receive(request, connection.get(), context_.stop, deadline, [&](const v1::WorkerInfo& info) {
            claim.note(info);
            return true;
          });
  connection.reset();
  // On the way out the worker goes on by itself; the next fvmmd adopts it and sees how it ends.
  if (context_.stop.fired()) return;
  const Status settled = after_receive(claim, worker, stream);
  if (!settled) spdlog::error("VM {}: {}", name, settled.error().message());
}

Status PeerListener::after_receive(Claim& claim, const std::shared_ptr<WorkerProcess>& worker, const Status& stream) {
  VmView vm = claim.view();
  const std::string name = vm.record.config().name();
  bool dead = !worker->alive();
  if (!dead && !runs(vm.info.state())) {
    const auto info = WorkerClient(worker->socket()).info(Deadline::after(kInfoWait));
    if (info) claim.note(*info);
    // The kernel closes a dying worker's sockets before its pidfd becomes readable.
    if (!info) dead = worker->wait_exit(Deadline::after(kDyingWait));
    vm = claim.view();
  }
  if (!dead && runs(vm.info.state())) {
    FVMM_TRY(claim.finish_incoming([&](v1::VmRecord& record) {
      record.set_state(vm.info.state());
      record.set_detail("");
    }));
    spdlog::info("VM {} runs here in worker {}", name, worker->pid());
    context_.supervisor.watch(claim.id(), worker);
    return {};
  }
  const auto session = read_session(vm.directory);
  if (!dead && session && session->outcome() == v1::OUTCOME_OPEN) {
    // Its worker may still get COMMIT, or an answer: it is left alone and watched.
    context_.supervisor.watch(claim.id(), worker);
    return claim.change([&](v1::VmRecord& record) {
      record.set_state(v1::VM_UNSETTLED);
      record.set_detail(fmt::format("the hand-over from {} has no answer; run \"fvmmctl migrate resolve {}\"",
                                    session->peer(), name));
    });
  }
  spdlog::warn("VM {} did not come in: {}", name,
               !stream                    ? stream.error().message()
               : vm.info.detail().empty() ? state_text(vm.info.state())
                                          : vm.info.detail());
  claim.detach();
  const std::string death = dead ? worker->how_it_ended() : "its replica was given up";
  // Read again after its end: what the worker wrote last decides.
  end_worker(*worker);
  return claim.settle_without_worker(death);
}

}  // namespace fvmm::daemon
