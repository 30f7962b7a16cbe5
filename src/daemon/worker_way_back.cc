// Worker: the way back. What has left is sealed here, what has come in is compared with what its source seals.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "daemon/template_service.h"
#include "daemon/worker_process.h"
#include "daemon/worker_seal.h"
#include "migration/generation_line.h"
#include "migration/refusal.h"
#include "migration/way_back.h"
#include "net/frame.h"

namespace fvmm::daemon {
namespace {

constexpr std::uint32_t kWayBackChainMax = 4;  // generations; then they become one delta
constexpr std::chrono::seconds kSayWait{5};
constexpr std::chrono::milliseconds kBusyPause{20};  // between two looks at a guest that another command has

Result<memory::TemplateInfo> seal_departed(const migration::Guest& guest, const Id& session,
                                           const v1::MachineState& state, memory::TemplateStore& store) {
  const memory::Bitmap& pages = guest.since_base->pending();
  memory::TemplateWriter writer = FVMM_TRY(
      store.begin_delta({.parent = "",
                         .parent_digest = FVMM_TRY(Id::from_bytes(guest.base.digest()), "the VM's template"),
                         .id = session,
                         .name = memory::generation_name(migration::way_back_line(guest.config), guest.fencing_token),
                         .generation = guest.fencing_token,
                         .config = guest.config,
                         .pages_expected = pages.count()}));
  memory::TemplateInfo info = FVMM_TRY(seal_pages(writer, pages, guest.machine->memory(), state));
  if (info.chain > kWayBackChainMax) info = FVMM_TRY(store.squash(info.name));
  return info;
}

void say(net::Stream& stream, const v1::PeerMessage& message) {
  const Status said = net::send_message(stream, net::FrameType::kControl, message, Deadline::after(kSayWait));
  if (!said) spdlog::info("the peer does not hear of the way back: {}", said.error().message());
}

}  // namespace

// The peer's pages must be ours: what is kept here is what it counts from.
Status Worker::check_departed(const migration::Guest& guest) {
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(*departed_->way_back, net::FrameType::kControl, message,
                                Deadline::after(migration::kWayBackWait)),
           "waiting for WAY_BACK");
  const auto& sent = departed_->by_way_back ? guest.way_back->since : guest.since_base;
  return migration::check_way_back(message, guest.machine->memory(), sent->pending(), departed_->base);
}

// The VM has left against a template of ours, and the peer counts what it writes from there: with this generation here
// the way back is as short as that. If it cannot be sealed the way back is against the template, as before.
Result<v1::TemplateInfo> Worker::seal_way_back(const v1::WorkerSealRequest& request) {
  GuestSlot::Held held = FVMM_TRY(slot_.take("seal the way back"));
  if (held.empty() || !departed_ || board_.get().state() != v1::VM_MOVED) {
    return Error(Errc::kFailedPrecondition, "no VM has left this worker on a template");
  }
  const auto all = [&]() -> Result<memory::TemplateInfo> {
    if (departed_->way_back) FVMM_TRY(check_departed(*held));
    auto store = FVMM_TRY(memory::TemplateStore::open(request.store_directory()));
    return seal_departed(*held, departed_->session, departed_->state, store);
  };
  const auto sealed = all();
  if (departed_->way_back) {
    v1::PeerMessage answer;
    answer.set_kind(v1::PEER_WAY_BACK_KEPT);
    if (sealed) answer.mutable_generation()->set_digest(sealed->digest.raw());
    say(*departed_->way_back, sealed ? answer : migration::to_message(v1::PEER_REJECTED, sealed.error()));
    departed_->way_back.reset();
  }
  if (!sealed) return Error(sealed.error());
  return to_proto(*sealed);
}

// In the background: until it has ended well the VM returns against its template.
void Worker::agree_on_way_back() {
  std::shared_ptr<migration::DestinationSession> session;
  {
    const std::lock_guard lock(session_mutex_);
    session = destination_;
  }
  std::shared_ptr<net::Stream> stream = session->take_way_back();
  if (!stream) return;
  way_back_ = std::thread([this, session, stream = std::move(stream)] {
    migration::ArrivedPages arrived(session->arrived(), session->base_digest(), options_.memory_bytes);
    const Status agreed = agree(*stream, std::move(arrived));
    if (agreed) return;
    spdlog::warn("no way back by what the source kept, but against the template: {}", agreed.error().message());
    v1::PeerMessage message = migration::to_message(v1::PEER_REJECTED, agreed.error());
    say(*stream, message);
  });
}

// Another command may have the guest for a while. Nobody waits for this one, and no capture breaks off for it.
Status Worker::when_guest_rests(const std::string& what, const std::function<Status(migration::Guest&)>& work) {
  const Deadline limit = Deadline::after(migration::kWayBackGuestWait);
  for (;;) {
    auto held = slot_.take_if_at_rest(what);
    const Status done = held ? with_guest(std::move(*held), work) : Error(Errc::kFailedPrecondition, "the VM is busy");
    const v1::VmState state = board_.get().state();
    const bool here = state == v1::VM_RUNNING || state == v1::VM_PAUSED;
    if (done || !here || stopping_ || limit.passed()) return done;
    std::this_thread::sleep_for(kBusyPause);
  }
}

Status Worker::agree(net::Stream& stream, migration::ArrivedPages arrived) {
  for (bool more = true; more;) {
    FVMM_TRY(when_guest_rests("compare the way back", [&](migration::Guest& guest) -> Status {
      more = FVMM_TRY(arrived.next(guest));
      return {};
    }));
  }
  FVMM_TRY(net::send_message(stream, net::FrameType::kControl, FVMM_TRY(arrived.message()), Deadline::after(kSayWait)),
           "send WAY_BACK");
  v1::PeerMessage answer;
  FVMM_TRY(net::receive_message(stream, net::FrameType::kControl, answer, Deadline::after(migration::kWayBackKeptWait)),
           "waiting for WAY_BACK_KEPT");
  if (answer.kind() != v1::PEER_WAY_BACK_KEPT) return migration::refusal(answer, "the source");
  const Id digest = FVMM_TRY(Id::from_bytes(answer.generation().digest()), "WAY_BACK_KEPT");
  return when_guest_rests("note the way back", [&](migration::Guest& guest) -> Status {
    if (!guest.way_back) return {};
    guest.way_back->digest = digest;
    guest.way_back->agreed = migration::WayBack::Agreed::kYes;
    return {};
  });
}

}  // namespace fvmm::daemon
