#include "migration/way_back_talk.h"

#include <spdlog/spdlog.h>

#include "memory/seal_pages.h"
#include "memory/template_store.h"
#include "migration/generation_line.h"
#include "migration/refusal.h"
#include "net/frame.h"

namespace fvmm::migration {
namespace {

constexpr std::uint32_t kWayBackChainMax = 4;  // generations; then they become one delta
constexpr std::chrono::seconds kSayWait{5};

void say(net::Stream& stream, const v1::PeerMessage& message) {
  const Status said = net::send_message(stream, net::FrameType::kControl, message, Deadline::after(kSayWait));
  if (!said) spdlog::info("the peer does not hear of the way back: {}", said.error().message());
}

Status agree(net::Stream& stream, ArrivedPages arrived, const WhenGuestRests& when_guest_rests) {
  for (bool more = true; more;) {
    FVMM_TRY(when_guest_rests("compare the way back", [&](Guest& guest) -> Status {
      more = FVMM_TRY(arrived.next(guest));
      return {};
    }));
  }
  FVMM_TRY(net::send_message(stream, net::FrameType::kControl, FVMM_TRY(arrived.message()), Deadline::after(kSayWait)),
           "send WAY_BACK");
  v1::PeerMessage answer;
  FVMM_TRY(net::receive_message(stream, net::FrameType::kControl, answer, Deadline::after(kWayBackKeptWait)),
           "waiting for WAY_BACK_KEPT");
  if (answer.kind() != v1::PEER_WAY_BACK_KEPT) return refusal(answer, "the source");
  const Id digest = FVMM_TRY(Id::from_bytes(answer.generation().digest()), "WAY_BACK_KEPT");
  return when_guest_rests("note the way back", [&](Guest& guest) -> Status {
    if (!guest.way_back) return {};
    guest.way_back->digest = digest;
    guest.way_back->agreed = WayBack::Agreed::kYes;
    return {};
  });
}

// The peer's pages must be ours: what is kept here is what it counts from.
Status check_departed(const Guest& guest, const Departed& departed) {
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(*departed.way_back, net::FrameType::kControl, message, Deadline::after(kWayBackWait)),
           "waiting for WAY_BACK");
  const auto& sent = departed.by_way_back ? guest.way_back->since : guest.since_base;
  return check_way_back(message, guest.machine->memory(), sent->pending(), departed.base);
}

Result<memory::TemplateInfo> seal_departed(const Guest& guest, const Departed& departed, memory::TemplateStore& store) {
  const memory::Bitmap& pages = guest.since_base->pending();
  memory::TemplateWriter writer =
      FVMM_TRY(store.begin_delta({.parent = "",
                                  .parent_digest = FVMM_TRY(Id::from_bytes(guest.base.digest()), "the VM's template"),
                                  .id = departed.session,
                                  .name = memory::generation_name(way_back_line(guest.config), guest.fencing_token),
                                  .generation = guest.fencing_token,
                                  .config = guest.config,
                                  .pages_expected = pages.count()}));
  memory::TemplateInfo info = FVMM_TRY(memory::seal_pages(writer, pages, guest.machine->memory(), departed.state));
  if (info.chain <= kWayBackChainMax) return info;
  auto squashed = store.squash(info.name);
  if (squashed) return squashed;
  spdlog::warn("{} stays a chain of {}: {}", info.name, info.chain, squashed.error().message());
  return info;  // whole, and durable; the next one is squashed with it
}

}  // namespace

Status agree_on_way_back(net::Stream& stream, ArrivedPages arrived, const WhenGuestRests& when_guest_rests) {
  Status agreed = agree(stream, std::move(arrived), when_guest_rests);
  if (!agreed) {
    spdlog::warn("no way back by what the source kept, but against the template: {}", agreed.error().message());
    say(stream, to_message(v1::PEER_REJECTED, agreed.error()));
  }
  return agreed;
}

// The VM has left against a template of ours, and the peer counts what it writes from there: with this generation here
// the way back is as short as that. If it cannot be sealed the way back is against the template, as before.
Result<memory::TemplateInfo> seal_way_back(const Guest& guest, Departed& departed,
                                           const std::filesystem::path& store_directory) {
  const auto all = [&]() -> Result<memory::TemplateInfo> {
    if (departed.way_back) FVMM_TRY(check_departed(guest, departed));
    auto store = FVMM_TRY(memory::TemplateStore::open(store_directory));
    return seal_departed(guest, departed, store);
  };
  auto sealed = all();
  if (departed.way_back) {
    v1::PeerMessage answer;
    answer.set_kind(v1::PEER_WAY_BACK_KEPT);
    if (sealed) answer.mutable_generation()->set_digest(sealed->digest.raw());
    say(*departed.way_back, sealed ? answer : to_message(v1::PEER_REJECTED, sealed.error()));
    departed.way_back.reset();
  }
  return sealed;
}

}  // namespace fvmm::migration
