#include "daemon/replication_service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <optional>
#include <utility>

#include "base/file.h"
#include "daemon/records.h"
#include "daemon/recovery.h"
#include "daemon/template_service.h"
#include "migration/refusal.h"
#include "migration/replica_receive.h"
#include "migration/replication.h"
#include "net/frame.h"
#include "vmm/cpuid.h"
#include "vmm/disk_config.h"
#include "vmm/kvm.h"
#include "vmm/net_config.h"

namespace fvmm::daemon {
namespace {

constexpr std::chrono::seconds kStatusWait{10};
constexpr std::chrono::seconds kSourceWait{3};      // for a source that may be dead
constexpr std::chrono::seconds kPeerCheckWait{10};  // for a peer's word on whether it could run the VM

template <class Limit>
Status check_range(const char* what, std::uint64_t value, Limit least, Limit most) {
  if (value == 0 || (value >= static_cast<std::uint64_t>(least) && value <= static_cast<std::uint64_t>(most)))
    return {};
  return Error(Errc::kInvalidArgument, fmt::format("{} of {}: between {} and {}", what, value, least, most));
}

/// Whether a worker that answers so has begun nothing. Any other error may be a worker that began and then died, or an
/// answer that got lost: somebody may have something of the VM, and its record stays.
bool says_no(Errc code) {
  switch (code) {
    case Errc::kInvalidArgument:
    case Errc::kNotFound:
    case Errc::kAlreadyExists:
    case Errc::kPermissionDenied:
    case Errc::kResourceExhausted:
    case Errc::kFailedPrecondition:
    case Errc::kUnimplemented:
      return true;
    default:
      return false;
  }
}

/// What the peer will be told when the replication ends.
v1::ReplicaStop stop_of(const VmView& vm, const std::string& peer, const Id& replication) {
  v1::ReplicaStop stop;
  stop.set_vm(vm.id.raw());
  stop.set_name(vm.record.config().name());
  stop.set_peer(peer);
  if (!replication.none()) stop.set_replication(replication.raw());
  stop.set_fencing_token(vm.record.fencing_token());
  *stop.mutable_template_() = vm.record.template_();
  return stop;
}

/// As written when it began; of one that an older fvmmd began, as far as its record tells.
Result<v1::ReplicaStop> stop_to_tell(const VmView& vm) {
  v1::ReplicaRecord record;
  if (!record.ParseFromString(FVMM_TRY(read_file(vm.directory / kReplicaFile, kRecordBytesMax)))) {
    return Error(Errc::kDataLoss, fmt::format("{} is damaged", (vm.directory / kReplicaFile).string()));
  }
  v1::ReplicaStop stop;
  const auto content = read_file(vm.directory / kReplicaStopFile, kRecordBytesMax);
  const bool ours = content && stop.ParseFromString(*content) && stop.peer() == record.peer();
  if (!ours) {
    stop = stop_of(vm, record.peer(), Id{});
    stop.set_fencing_token(record.fencing_token());
  }
  stop.set_realtime_ns(system_clock().realtime_ns());
  return stop;
}

Result<v1::PeerMessage> ask(const std::string& peer, v1::PeerHello hello, const Deadline& deadline) {
  const auto stream = FVMM_TRY(net::Channel::connect(FVMM_TRY(net::Endpoint::parse(peer)), deadline));
  hello.set_version(migration::kPeerVersion);
  FVMM_TRY(net::send_message(*stream, net::FrameType::kHello, hello, deadline));
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(*stream, net::FrameType::kControl, message, deadline));
  return message;
}

Result<v1::SessionAnswer> ask_source(const v1::ReplicaRecord& record, const std::string& from) {
  v1::PeerHello hello;
  hello.set_purpose(v1::QUERY_VM);
  hello.mutable_vm()->set_id(record.vm());
  hello.set_from(from);
  const auto message = FVMM_TRY(ask(record.peer(), std::move(hello), Deadline::after(kSourceWait)));
  if (message.kind() != v1::PEER_ANSWER) return Error(Errc::kDataLoss, "the source did not answer the question");
  return message.answer();
}

// A peer that cannot be reached now is tried again by the replication, whose status says so; so does that of an older
// peer, which does not know the question.
Status check_peer(const VmView& vm, const std::string& to, const std::string& from, const Deadline& deadline) {
  v1::PeerHello hello;
  hello.set_purpose(v1::CHECK_REPLICA);
  *hello.mutable_vm() = vm.record.config();
  hello.set_fencing_token(vm.record.fencing_token());
  hello.set_from(from);
  const auto message = ask(to, std::move(hello), deadline.sooner(kPeerCheckWait));
  if (!message || message->kind() == v1::PEER_ANSWER) return {};
  Error refused = migration::refusal(*message, to);
  if (message->kind() == v1::PEER_REJECTED && refused.code() == Errc::kInvalidArgument) return {};
  return refused;
}

}  // namespace

Status check_cpu_here(const v1::MachineState& state) {
  if (state.vcpus_size() == 0) return Error(Errc::kDataLoss, "no vCPU state");
  const auto kvm = FVMM_TRY(vmm::Kvm::open());
  const auto cpu = FVMM_TRY(vmm::unpack_cpuid(state.vcpus(0).cpuid()));
  return vmm::check_cpuid_fits(cpu, FVMM_TRY(kvm.supported_cpuid()));
}

Status check_replicate(const v1::ReplicateRequest& request, bool test_hooks) {
  FVMM_TRY(parse_peer(request.to()));
  FVMM_TRY(check_range("an interval in ms", request.interval_ms(), migration::kReplicateIntervalMin.count(),
                       migration::kReplicateIntervalMax.count()));
  FVMM_TRY(check_range("a buffer in bytes", request.buffer_bytes(), migration::kCaptureBufferMin,
                       migration::kCaptureBufferMax));
  FVMM_TRY(check_range("a bandwidth in bytes a second", request.bandwidth_bytes_s(), migration::kBandwidthMin,
                       std::uint64_t{1} << 60));
  if (!request.test_hook().empty() && !test_hooks) {
    return Error(Errc::kPermissionDenied, "test hooks need an fvmmd started with --test-hooks");
  }
  return {};
}

Status ReplicationService::push_base(const VmView& vm, const std::string& to, const Deadline& deadline) const {
  const v1::TemplateRef base = FVMM_TRY(live_base(vm));
  if (base.id().empty()) return {};
  const auto info =
      FVMM_TRY(parts_.store.find(FVMM_TRY(Id::from_bytes(base.id())), FVMM_TRY(Id::from_bytes(base.digest()))),
               "the VM's template");
  FVMM_TRY(push_with_parents(parts_.store, info, FVMM_TRY(parse_peer(to)), deadline, {}));
  return {};
}

Result<v1::ReplicaStatus> ReplicationService::start(const v1::ReplicateRequest& request, const Deadline& deadline) {
  FVMM_TRY(check_replicate(request, options_.test_hooks));
  const Claim claim = FVMM_TRY(parts_.registry.claim(request.vm(), "replicate start"));
  const VmView vm = claim.view();
  if (!vm.worker || (vm.state() != v1::VM_RUNNING && vm.state() != v1::VM_PAUSED)) {
    return Error(Errc::kFailedPrecondition, fmt::format("VM {} is {}: only a running or paused VM can be replicated",
                                                        request.vm(), state_text(vm.state())));
  }
  FVMM_TRY(vmm::check_disks_readonly(vm.record.config()));
  FVMM_TRY(vmm::check_disks_travel(vm.record.config()));
  const WorkerClient worker(vm.worker->socket());
  if (const auto already = worker.replication_status(Deadline::after(kStatusWait)); already) {
    return Error(Errc::kAlreadyExists,
                 fmt::format("VM {} is being replicated to {} already", request.vm(), already->to()));
  }
  FVMM_TRY(check_peer(vm, request.to(), options_.listen, deadline));
  FVMM_TRY(push_base(vm, request.to(), deadline));
  parts_.stops.supersede(vm.id.raw(), request.to());
  const Id replication = Id::random();
  v1::WorkerReplicateRequest work;
  *work.mutable_request() = request;
  work.set_from(options_.listen);
  work.set_replication(replication.raw());
  FVMM_TRY(replace_file(vm.directory / kReplicaStopFile, stop_of(vm, request.to(), replication).SerializeAsString()),
           "record the replication");
  v1::ReplicaRecord record;
  record.set_vm(vm.id.raw());
  record.set_name(request.vm());
  record.set_peer(request.to());
  record.set_fencing_token(vm.record.fencing_token());
  // Durable before the peer has anything: from then on somebody may recover the VM there.
  FVMM_TRY(replace_file(vm.directory / kReplicaFile, record.SerializeAsString()), "record the replication");
  auto started = worker.start_replication(work, deadline);
  if (!started && says_no(started.error().code())) FVMM_TRY(remove_file(vm.directory / kReplicaFile));
  return started;
}

Result<v1::ReplicaStatus> ReplicationService::end_in_worker(const VmView& vm) const {
  std::error_code ignored;
  const std::string& name = vm.record.config().name();
  const bool recorded = std::filesystem::exists(vm.directory / kReplicaFile, ignored);
  v1::ReplicaStatus last;
  last.set_vm(name);
  last.set_state("stopped");
  if (vm.worker) {
    auto stopped = vm.worker->client()->stop_replication(Deadline::after(kStatusWait));
    const bool none = !stopped && stopped.error().code() == Errc::kFailedPrecondition;
    if (!stopped && !(none && recorded)) return std::move(stopped.error());
    if (stopped) last = std::move(*stopped);
  } else if (!recorded) {
    return Error(Errc::kFailedPrecondition, fmt::format("VM {} is not being replicated", name));
  }
  return last;
}

Result<v1::ReplicaStatus> ReplicationService::stop(const std::string& name) {
  const Claim claim = FVMM_TRY(parts_.registry.claim(name, "replicate stop"));
  const VmView vm = claim.view();
  v1::ReplicaStatus last = FVMM_TRY(end_in_worker(vm));
  if (last.state() == "fenced") return last;  // the record stays: it runs at the peer
  const v1::ReplicaStop stop = FVMM_TRY(stop_to_tell(vm), "the replication's record");
  last.set_to(stop.peer());
  const ReplicaStops::Outcome outcome = FVMM_TRY(parts_.stops.tell(stop));
  say_stopped(vm, outcome, last);
  if (last.state() == "fenced") return last;
  FVMM_TRY(remove_file(vm.directory / kReplicaFile));
  (void)remove_file(vm.directory / kReplicaStopFile);  // of no replication: not read
  return last;
}

void ReplicationService::say_stopped(const VmView& vm, const ReplicaStops::Outcome& outcome,
                                     v1::ReplicaStatus& last) const {
  switch (outcome.told) {
    case ReplicaStops::Told::kYes:
      return last.set_detail(fmt::format("{} has dropped the replica", last.to()));
    case ReplicaStops::Told::kLater:
      return last.set_detail(
          fmt::format("{} still holds the replica, and has not been told ({}); it is told as soon as "
                      "it answers",
                      last.to(), outcome.why));
    case ReplicaStops::Told::kNotUnderstood:
      return last.set_detail(
          fmt::format("{} keeps the replica ({}): remove its generations there", last.to(), outcome.why));
    case ReplicaStops::Told::kRecovered:
      break;
  }
  last.set_state("fenced");
  last.set_detail(outcome.why);
  if (!vm.worker) return;
  const Status fenced = vm.worker->client()->fence(last.to(), Deadline::after(kStatusWait));
  if (!fenced)
    spdlog::error("VM {} runs at {} and could not be stopped here: {}", last.vm(), last.to(), fenced.error().message());
}

void fence_recovered(const Registry& registry, const v1::ReplicaStop& stop) {
  const auto vm = registry.find(Id::from_bytes(stop.vm()).value_or(Id{}));
  if (!vm || !vm->worker || vm->record.fencing_token() != stop.fencing_token()) return;
  const Status fenced = vm->worker->client()->fence(stop.peer(), Deadline::after(kStatusWait));
  if (!fenced)
    spdlog::error("VM {} runs at {} and could not be stopped here: {}", stop.name(), stop.peer(),
                  fenced.error().message());
}

Result<v1::ReplicaStatus> ReplicationService::status(const std::string& name) const {
  const VmView vm = FVMM_TRY(parts_.registry.find(name));
  if (!vm.worker) return Error(Errc::kFailedPrecondition, fmt::format("VM {} is not running", name));
  return vm.worker->client()->replication_status(Deadline::after(kStatusWait));
}

Status ReplicationService::check_source(const v1::ReplicaRecord& record, const v1::RecoverRequest& request) const {
  const auto answer = ask_source(record, options_.listen);
  if (answer && answer->outcome() == "started") {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("VM {} is {} at {}: two of it would run; stop it there, or migrate it", record.name(),
                             answer->detail(), record.peer()));
  }
  if (answer && answer->outcome() != "refused") {
    return Error(
        Errc::kFailedPrecondition,
        fmt::format("VM {} is {} at {}, where a command or a hand-over is under way: see \"vm show {}\" there first",
                    record.name(), answer->detail(), record.peer(), record.name()));
  }
  if (answer || request.source_is_dead()) return {};
  return Error(Errc::kFailedPrecondition,
               fmt::format("its source {} does not answer ({}), so nobody knows whether VM {} still runs there: make "
                           "sure that it does not, then say so with --source-is-dead",
                           record.peer(), answer.error().message(), record.name()));
}

Result<v1::RecoverReport> ReplicationService::recover(const v1::RecoverRequest& request, const Deadline& deadline) {
  const SteadyTime accepted = std::chrono::steady_clock::now();
  const v1::ReplicaRecord record = FVMM_TRY(parts_.replicas.find(request.vm()));
  const Id id = FVMM_TRY(Id::from_bytes(record.vm()));
  VmService::Recovery recovery;
  recovery.accepted = accepted;
  std::optional<Claim> claim;
  std::optional<Provisions> provisions;  // goes before the claim does
  // Whatever can be refused is refused here, before the token: from there on a source with an older one is fenced.
  const auto admit = [&](const Runnable& found) -> Status {
    const memory::TemplateInfo& generation = found.opened.info();
    recovery.config = FVMM_TRY(vmm::place_nets(generation.config, request.nets()));
    FVMM_TRY(check_source(record, request));
    if (options_.check_cpu) FVMM_TRY(options_.check_cpu(found.state), "generation " + generation.name);
    claim.emplace(FVMM_TRY(parts_.vms.claim_recovered(recovery.config, found.state.fencing_token())));
    v1::VmRecord wanted;
    *wanted.mutable_config() = recovery.config;
    *wanted.mutable_template_() = to_ref(generation);
    provisions.emplace(FVMM_TRY(parts_.vms.provide(wanted, deadline)));
    return {};
  };
  const std::string what = "recover " + request.vm();
  const RightToRun right = FVMM_TRY(take_right(parts_.replicas, parts_.store, id, admit, deadline), what);
  recovery.generation = right.from.opened.info();
  recovery.token = right.token;
  v1::RecoverReport report;
  *report.mutable_vm() = FVMM_TRY(parts_.vms.recover(*claim, recovery, std::move(*provisions), deadline), what);
  report.set_generation(recovery.generation.generation);
  report.set_template_(recovery.generation.name);
  const v1::MachineState& state = right.from.state;
  const auto lost = system_clock().realtime_ns() - static_cast<std::int64_t>(state.clock().realtime_ns());
  report.set_lost_ms(state.clock().realtime_ns() == 0 ? 0 : static_cast<double>(lost) / 1e6);
  report.set_duration_ms(to_ms(std::chrono::steady_clock::now() - accepted));
  spdlog::info("VM {} recovered from generation {}, fencing token {}, {:.0f} ms lost", request.vm(),
               report.generation(), recovery.token, report.lost_ms());
  return report;
}

void ReplicationService::bind(control::Server& server) {
  using control::Call;
  server.unary<v1::ReplicateRequest, v1::ReplicaStatus>(
      "fvmm.v1.Replications/Start",
      [this](Call& call, const v1::ReplicateRequest& request) { return start(request, call.deadline()); });
  server.unary<v1::VmName, v1::ReplicaStatus>(
      "fvmm.v1.Replications/Stop", [this](Call&, const v1::VmName& request) { return stop(request.name()); });
  server.unary<v1::VmName, v1::ReplicaStatus>(
      "fvmm.v1.Replications/Status", [this](Call&, const v1::VmName& request) { return status(request.name()); });
  server.unary<v1::RecoverRequest, v1::RecoverReport>(
      "fvmm.v1.Replications/Recover",
      [this](Call& call, const v1::RecoverRequest& request) { return recover(request, call.deadline()); });
}

}  // namespace fvmm::daemon
