// SimReplicaWorld: fvmmd at the peer. Part of support/sim_replica_world.h.
#pragma once

#include <fmt/format.h>

#include "support/sim_replica_world.h"

namespace fvmm::testing {

inline constexpr std::chrono::seconds kRecoverWait{30};

/// A planted fault: says SEALED as soon as it says HELD, and nothing when it is so.
class SimEagerStream final : public net::Stream {
 public:
  explicit SimEagerStream(net::Stream& below) : below_(below) {}
  Status start_send(std::span<const iovec> parts, const Deadline& deadline) override {
    v1::PeerMessage message;
    const auto* const bytes = static_cast<const std::byte*>(parts.front().iov_base);
    const auto body = static_cast<int>(parts.front().iov_len - net::kFrameHeaderBytes);
    if (!message.ParseFromArray(bytes + net::kFrameHeaderBytes, body)) return below_.start_send(parts, deadline);
    if (message.kind() == v1::PEER_GENERATION_SEALED) return {};
    FVMM_TRY(below_.start_send(parts, deadline));
    if (message.kind() != v1::PEER_GENERATION_HELD) return {};
    FVMM_TRY(below_.finish_send(deadline));
    message.set_kind(v1::PEER_GENERATION_SEALED);
    return net::send_message(below_, net::FrameType::kControl, message, deadline);
  }
  Status finish_send(const Deadline& deadline) override { return below_.finish_send(deadline); }
  using Stream::receive;
  Status receive(std::span<const iovec> parts, const Deadline& deadline) override {
    return below_.receive(parts, deadline);
  }
  [[nodiscard]] bool closed_by_peer() const override { return below_.closed_by_peer(); }
  void cancel() override { below_.cancel(); }

 private:
  net::Stream& below_;
};

/// As Daemon::open: what is unsealed goes, then the records are read. What ran here is lost; what was recovered is
/// started again by its user, from the generation that its record names.
inline void SimReplicaWorld::boot() {
  if (plan_.plant == SimPlant::kUnsealedStarted) publish_leftovers();
  for (int attempt = 0;; ++attempt) {  // a full disk: somebody starts it again
    auto store = memory::TemplateStore::open(directory_ / "store");
    const Status swept = store ? store->sweep() : Status(store.error());
    auto replicas = daemon::Replicas::open(directory_ / "replicas", kGiB);
    if (swept && replicas) {
      fvmmd_ = std::make_shared<SimFvmmd>(SimFvmmd{std::move(*replicas), std::move(*store)});
      break;
    }
    const std::string why = swept ? replicas.error().message() : swept.error().message();
    expect(attempt < 1'000, "fvmmd does not start again: " + why);
    if (attempt >= 1'000) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  host(2).up = true;
  trace(2, "is up again");
  check_store();
  const auto replica = fvmmd_->replicas.find(*Id::from_bytes(config_.id()));
  expect(token_ == 0 || (replica && replica->fencing_token() >= token_), "a fencing token that was given is forgotten");
  const auto record = read_file(directory_ / "vm.pb", 64 * kKiB);
  v1::VmRecord vm;
  if (!record || !vm.ParseFromString(*record)) return;
  const auto generation =
      fvmmd_->store.find(*Id::from_bytes(vm.template_().id()), *Id::from_bytes(vm.template_().digest()));
  expect(generation.ok(), "what was recovered is no longer in the store");
  if (generation) (void)start_here(*generation);
}

/// A planted fault: a staging directory with a manifest becomes a generation.
inline void SimReplicaWorld::publish_leftovers() {
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(directory_ / "store", none)) {
    if (!entry.path().filename().string().starts_with(".staging-")) continue;
    const std::uint64_t number = 1'000'000;
    const std::string name = memory::generation_name(migration::replica_line(config_), number);
    std::error_code ignored;
    if (!std::filesystem::exists(entry.path() / "manifest")) continue;
    sim_self->host = 0;  // unseen by the model of the disk
    std::filesystem::rename(entry.path(), directory_ / "store" / name, ignored);
    sim_self->host = 2;
    return;
  }
}

inline void SimReplicaWorld::serve(std::unique_ptr<net::Stream> stream) {
  v1::PeerHello hello;
  if (!net::receive_message(*stream, net::FrameType::kHello, hello, Deadline::after(std::chrono::seconds(20)))) return;
  const auto fvmmd = fvmmd_;
  if (!fvmmd) return;
  SimEagerStream eager(*stream);
  net::Stream& used = plan_.plant == SimPlant::kAckBeforeSealed ? static_cast<net::Stream&>(eager) : *stream;
  const Status ended = serve(used, hello, *fvmmd);
  trace(2, "a connection has ended: " + ended.error().message());
}

/// PeerListener::replicate_in, without what the registry of VMs adds.
inline Status SimReplicaWorld::serve(net::Stream& stream, const v1::PeerHello& hello, SimFvmmd& fvmmd) {
  const Id vm = FVMM_TRY(Id::from_bytes(hello.vm().id()));
  auto session = fvmmd.replicas.begin(hello, stream);
  if (!session) {
    v1::PeerMessage message;
    message.set_kind(v1::PEER_REJECTED);
    message.set_reason(session.error().message());
    (void)net::send_message(stream, net::FrameType::kControl, message, Deadline::after(std::chrono::seconds(5)));
    return std::move(session.error());
  }
  migration::ReplicaHost host;
  host.store = &fvmmd.store;
  host.unless_recovered = [&](const std::function<void()>& work) {
    return fvmmd.replicas.unless_recovered(vm, hello.fencing_token(), work);
  };
  host.on_step = [this](std::string_view step) -> Status {
    trace(2, step);
    alive();
    return {};
  };
  return migration::receive_replica(stream, hello, host);
}

/// `replicate recover` at the peer. True: the VM runs there.
inline bool SimReplicaWorld::recover() {
  const auto fvmmd = fvmmd_;
  if (!fvmmd || replica_) return replica_ != nullptr;
  const Status done = recover(*fvmmd);
  trace(2, "recovery: " + (done ? std::string("runs here") : done.error().message()));
  return done.ok();
}

/// ReplicationService::recover and VmService::recover, around the same take_right().
inline Status SimReplicaWorld::recover(SimFvmmd& fvmmd) {
  const Id id = FVMM_TRY(Id::from_bytes(config_.id()));
  const v1::ReplicaRecord known = FVMM_TRY(fvmmd.replicas.find(id));
  expect(known.fencing_token() >= token_, "a fencing token that was given is forgotten");
  bool wrongly = false;
  const auto admit = [&](const daemon::Runnable&) -> Status {
    alive();
    const bool answers = host(1).up && !plan_.source_silent;
    wrongly = source_lives_ && !source_fenced_;  // also while it stands still for a capture
    if (answers && wrongly) return Error(Errc::kFailedPrecondition, "it runs at its source");
    if (plan_.peer_lacks_backend && !healed_) return Error(Errc::kNotFound, "net0: there is no such tap here");
    return {};
  };
  const auto right =
      FVMM_TRY(daemon::take_right(fvmmd.replicas, fvmmd.store, id, admit, Deadline::after(kRecoverWait)));
  expect(right.token > token_ && right.token > guest_->fencing_token, "a fencing token is given twice");
  token_ = right.token;
  recovered_ = true;
  vouched_wrongly_ |= wrongly;
  published_at_recovery_ = sealed_ever_;
  const memory::TemplateInfo& newest = right.from.opened.info();
  v1::VmRecord record;
  *record.mutable_config() = newest.config;
  record.mutable_template_()->set_id(newest.id.raw());
  record.mutable_template_()->set_digest(newest.digest.raw());
  record.set_fencing_token(right.token);
  FVMM_TRY(replace_file(directory_ / "vm.pb", record.SerializeAsString()));
  return start_here(newest);
}

inline Status SimReplicaWorld::start_here(const memory::TemplateInfo& generation) {
  expect(published_.contains(generation.name), generation.name + " was started, and was never sealed");
  expect(generation.generation >= acked_,
         fmt::format("{} was started, and {} was acknowledged", generation.name, acked_));
  auto opened = std::make_unique<memory::OpenTemplate>(FVMM_TRY(memory::OpenTemplate::open(generation.directory)));
  SimReplicaPlan plan = plan_;
  plan.plant = SimPlant::kNone;
  auto machine = std::make_unique<SimMachine>(
      seed_, sim_guest_plan(plan), SimMachineFaults{},
      SimMachine::Hooks{
          .alive = [this] { alive(); }, .starting = [](SimMachine&) {}, .gone = [](SimMachine&) {}, .saved = {}});
  FVMM_TRY(machine->memory().map_template(opened->image()));
  FVMM_TRY(machine->load_state(FVMM_TRY(opened->machine_state())));
  const auto instant = instants_.find(machine->registers()[1]);
  expect(instant != instants_.end(), "a state was started that the guest never had");
  if (instant != instants_.end()) {
    expect(instant->second == sim_window_hash(machine->memory(), plan_),
           "what was started is not the guest at its instant");
  }
  replica_ = std::move(machine);
  opened_ = std::move(opened);
  check_moment();
  FVMM_TRY(replica_->resume());
  return {};
}

}  // namespace fvmm::testing
