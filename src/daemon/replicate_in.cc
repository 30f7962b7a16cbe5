// PeerListener: a VM's generations come in; and the question whether a VM runs here.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "daemon/checks.h"
#include "daemon/disk_files.h"
#include "daemon/peer_listener.h"
#include "daemon/records.h"
#include "migration/refusal.h"
#include "migration/replica_receive.h"
#include "net/frame.h"

namespace fvmm::daemon {
namespace {

constexpr std::chrono::seconds kAnswerWait{5};

}  // namespace

// Staging a generation may take as much memory as the VM has: a host without room says so before anything is sent.
Status PeerListener::check_replica(const v1::PeerHello& hello) const {
  if (!hello.test_hook().empty() && !context_.test_hooks) {
    return Error(Errc::kPermissionDenied, "test hooks need an fvmmd started with --test-hooks");
  }
  if (hello.fencing_token() == 0) return Error(Errc::kInvalidArgument, "hello: no fencing token");
  FVMM_TRY(check_config(hello.vm()), "hello");
  FVMM_TRY(check_fits(hello.vm(), FVMM_TRY(read_host_memory())));
  const auto here = context_.registry.find(FVMM_TRY(Id::from_bytes(hello.vm().id()), "VM id"));
  if (!here || here->state() == v1::VM_MOVED) return {};
  if (here->record.fencing_token() >= hello.fencing_token()) return {};  // recovered here: the source is fenced
  return Error(Errc::kAlreadyExists,
               fmt::format("VM {} with the same id is here and {}", hello.vm().name(), state_text(here->state())));
}

Status PeerListener::replicate_in(net::Channel& channel, const v1::PeerHello& hello) {
  FVMM_TRY(check_replica(hello));
  const Id vm = FVMM_TRY(Id::from_bytes(hello.vm().id()));
  const auto session = FVMM_TRY(context_.replicas.begin(hello, channel));
  const StopSignal::Guard guard(context_.stop, [&channel] { channel.cancel(); });
  spdlog::info("VM {} is replicated to here from {}", hello.vm().name(), hello.from());
  migration::ReplicaHost host;
  host.store = &context_.store;
  host.unless_recovered = [&](const std::function<void()>& work) {
    return context_.replicas.unless_recovered(vm, hello.fencing_token(), work);
  };
  host.on_step = FVMM_TRY(migration::parse_step_hook(context_.test_hooks ? hello.test_hook() : ""));
  const Status ended = migration::receive_replica(channel, hello, host);
  spdlog::info("replication of VM {} from {} has ended: {}", hello.vm().name(), hello.from(), ended.error().message());
  return {};  // the source was told
}

// Asked by a host that is about to replicate a VM to here. Networks are not looked at, because a recovery may connect
// them elsewhere; disks only now, because a replica may grow while a file is away. kInvalidArgument is what a peer
// answers that does not know the question.
Status PeerListener::answer_replica_check(net::Channel& channel, const v1::PeerHello& hello) const {
  Status fits = check_replica(hello);
  if (fits) fits = check_disk_files(hello.vm());
  if (!fits && fits.error().code() == Errc::kInvalidArgument) {
    return Error(Errc::kFailedPrecondition, fits.error().message());
  }
  if (!fits) return fits;
  v1::PeerMessage message;
  message.set_kind(v1::PEER_ANSWER);
  message.mutable_answer()->set_outcome("fits");
  return net::send_message(channel, net::FrameType::kControl, message, Deadline::after(kAnswerWait));
}

// The source has ended a replication: its generations go, except what the VM itself runs on at its source.
Status PeerListener::forget_replica(net::Channel& channel, const v1::PeerHello& hello) {
  if (hello.fencing_token() == 0) return Error(Errc::kInvalidArgument, "hello: no fencing token");
  FVMM_TRY(check_name("VM", hello.vm().name()), "hello");
  const auto forgotten = FVMM_TRY(context_.replicas.forget(hello, [&] {
    const auto keep = Id::from_bytes(hello.template_().digest()).value_or(Id{});
    migration::remove_older(context_.store, hello.vm().id(), migration::replica_line(hello.vm()),
                            migration::kAllGenerations, keep);
  }));
  v1::PeerMessage message;
  message.set_kind(v1::PEER_REPLICA_FORGOTTEN);
  if (forgotten == Replicas::Forgotten::kRecovered) {
    message = migration::to_message(
        v1::PEER_FENCED, Error(Errc::kAborted, fmt::format("VM {} has been recovered here", hello.vm().name())));
  }
  spdlog::info("the replication of VM {} from {} has been ended there{}", hello.vm().name(), hello.from(),
               forgotten == Replicas::Forgotten::kRecovered    ? ", but it has been recovered here"
               : forgotten == Replicas::Forgotten::kSuperseded ? ", and begun again since"
                                                               : "");
  return net::send_message(channel, net::FrameType::kControl, message, Deadline::after(kAnswerWait));
}

// "started": it runs here, or this host knows where it went; "refused": it does not run; "unknown": a hand-over or a
// command is under way. Asked by a host that is about to recover it.
Status PeerListener::answer_vm_query(net::Channel& channel, const v1::PeerHello& hello) {
  const Id vm = FVMM_TRY(Id::from_bytes(hello.vm().id()), "VM id");
  const auto here = context_.registry.find(vm);
  v1::PeerMessage message;
  message.set_kind(v1::PEER_ANSWER);
  v1::SessionAnswer& answer = *message.mutable_answer();
  answer.set_detail(here ? state_text(here->state()) : "not known here");
  if (!here) {
    answer.set_outcome("refused");
  } else if (here->state() == v1::VM_MOVED) {
    const std::string to = here->moved_to();
    answer.set_outcome(to == hello.from() ? "refused" : "started");  // the asker knows best whether it has it
    answer.set_detail("moved to " + to);
  } else if (here->state() == v1::VM_UNSETTLED || here->state() == v1::VM_INCOMING || !here->busy.empty()) {
    answer.set_outcome("unknown");
  } else {
    answer.set_outcome(here->worker ? "started" : "refused");
  }
  return net::send_message(channel, net::FrameType::kControl, message, Deadline::after(kAnswerWait));
}

}  // namespace fvmm::daemon
