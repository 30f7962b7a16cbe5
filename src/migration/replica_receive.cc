#include "migration/replica_receive.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>

#include <algorithm>
#include <optional>

#include "memory/guest_memory.h"
#include "memory/template_format.h"
#include "migration/page_receiver.h"
#include "migration/refusal.h"
#include "net/frame.h"

namespace fvmm::migration {
namespace {

constexpr std::uint64_t kWritePages = 256;  // to the store at a time
constexpr std::chrono::seconds kSayWait{10};

/// One connection's session. Owner: receive_replica.
class ReplicaReceiver {
 public:
  ReplicaReceiver(net::Stream& stream, const v1::PeerHello& hello, const ReplicaHost& host)
      : stream_(stream), hello_(hello), host_(host), line_(replica_line(hello.vm())) {}

  Status run() {
    FVMM_TRY(find_base());
    FVMM_TRY(unless_fenced([] { return Status(); }));
    FVMM_TRY(greet());
    for (;;) FVMM_TRY(receive_generation());
  }
  [[nodiscard]] bool fenced() const { return fenced_; }

 private:
  Status step(std::string_view name) { return host_.on_step ? host_.on_step(name) : Status{}; }

  Status unless_fenced(const std::function<Status()>& work) {
    Status status;
    if (host_.unless_recovered([&] { status = work(); })) return status;
    fenced_ = true;
    return Error(Errc::kAborted,
                 fmt::format("VM {} has been recovered here and runs no longer at its source", hello_.vm().name()));
  }

  // What the first generation is against must be here, with the same content.
  Status find_base() {
    FVMM_TRY(memory::Layout::of(hello_.vm().memory_bytes()), "guest memory");
    if (hello_.template_().id().empty()) return {};
    const Id id = FVMM_TRY(Id::from_bytes(hello_.template_().id()), "template id");
    base_ = FVMM_TRY(Id::from_bytes(hello_.template_().digest()), "template digest");
    const auto info = FVMM_TRY(host_.store->find(id, base_));
    base_chain_ = info.chain;
    if (info.memory_bytes == hello_.vm().memory_bytes()) return {};
    return Error(Errc::kInvalidArgument, fmt::format("template {} is not of the VM's size", info.name));
  }

  Status greet() {
    const auto newest = newest_generation(*host_.store, hello_.vm().id());
    if (!newest && newest.error().code() != Errc::kNotFound) return Error(newest.error());
    v1::PeerMessage ready;
    ready.set_kind(v1::PEER_REPLICA_READY);
    if (newest) {
      sealed_ = newest->digest;
      number_ = newest->generation;
      ready.mutable_generation()->set_number(newest->generation);
      ready.mutable_generation()->set_digest(newest->digest.raw());
    }
    FVMM_TRY(step("ready"));
    return net::send_message(stream_, net::FrameType::kControl, ready, Deadline::after(kSayWait));
  }

  Status receive_generation() {
    FVMM_TRY(make_staging());
    PageReceiver receiver(stream_, *staging_, false);
    FVMM_TRY(receiver.run(Deadline::after(kReplicaIdleMax)), "receive pages");
    FVMM_TRY(step("pages"));
    v1::PeerMessage message;
    FVMM_TRY(net::receive_message(stream_, net::FrameType::kControl, message, Deadline::after(kReplicaTransferWait)));
    if (message.kind() != v1::PEER_GENERATION) return Error(Errc::kDataLoss, "GENERATION was due");
    FVMM_TRY(check(message.generation(), receiver.written()), "generation");
    FVMM_TRY(step("held"));
    FVMM_TRY(answer(v1::PEER_GENERATION_HELD, message.generation()));
    FVMM_TRY(unless_fenced([&] { return seal(message, receiver.written()); }));
    FVMM_TRY(step("sealed"));
    FVMM_TRY(answer(v1::PEER_GENERATION_SEALED, message.generation()));
    tidy();
    return {};
  }

  // Fresh and empty each time: what a broken link left must not be taken for a page of the next generation.
  Status make_staging() {
    if (!staging_) staging_ = FVMM_TRY(memory::GuestMemory::reserve(hello_.vm().memory_bytes()), "staging memory");
    FVMM_TRY(staging_->map_zero(), "staging memory");
    (void)::madvise(staging_->host_base(), hello_.vm().memory_bytes(), MADV_NOHUGEPAGE);  // deltas are scattered
    return {};
  }

  // Whole and unspoilt: numbers ascend, the parent is what we sealed last (or the template: a new line begins), the
  // digest is that of what arrived.
  Status check(const v1::GenerationPoint& point, const memory::Bitmap& pages) {
    if (point.number() <= number_) {
      return Error(Errc::kDataLoss, fmt::format("number {} after {}", point.number(), number_));
    }
    parent_ = FVMM_TRY(Id::from_bytes(point.parent_digest()), "parent digest");
    if (parent_ != sealed_ && parent_ != base_) {
      return Error(Errc::kDataLoss,
                   fmt::format("{} is against {}, which is not the newest here", point.number(), parent_.hex()));
    }
    memory::DigestChain chain(parent_, hello_.vm().memory_bytes());
    for (const memory::PageRange& range : pages.ranges(1)) {
      const auto bytes = staging_->pages(range);
      // On the zero template a first generation is a base, whose pages are the non-zero ones.
      if (parent_.none() && memory::is_zero_page(bytes.first<kPageBytes>())) continue;
      chain.add(range.first, memory::hash_page(bytes.first<kPageBytes>()));
    }
    digest_ = chain.finish();
    if (digest_.raw() == point.digest()) return {};
    return Error(Errc::kDataLoss, fmt::format("{}: {} pages with digest {}, sent as {} pages with another",
                                              point.number(), chain.pages(), digest_.hex(), point.pages()));
  }

  Result<memory::TemplateWriter> writer(const v1::GenerationPoint& point, std::uint64_t pages) {
    const std::string name = memory::generation_name(line_, point.number());
    if (parent_.none()) {
      return host_.store->begin({.id = Id{},
                                 .name = name,
                                 .generation = point.number(),
                                 .memory_bytes = hello_.vm().memory_bytes(),
                                 .config = hello_.vm(),
                                 .bytes_expected = pages * kPageBytes});
    }
    return host_.store->begin_delta({.parent = "",
                                     .parent_digest = parent_,
                                     .id = Id{},
                                     .name = name,
                                     .generation = point.number(),
                                     .config = hello_.vm(),
                                     .pages_expected = pages});
  }

  Status seal(const v1::PeerMessage& message, const memory::Bitmap& pages) {
    FVMM_TRY(step("seal"));
    memory::TemplateWriter out = FVMM_TRY(writer(message.generation(), pages.count()));
    for (const memory::PageRange& range : pages.ranges(kWritePages)) {
      FVMM_TRY(out.add_pages(range.first, staging_->pages(range)));
    }
    FVMM_TRY(out.set_machine_state(message.state()));
    const memory::TemplateInfo info = FVMM_TRY(out.seal(&digest_));
    sealed_ = info.digest;
    number_ = info.generation;
    chain_ = info.chain;
    return {};
  }

  Status answer(v1::PeerKind kind, const v1::GenerationPoint& point) {
    v1::PeerMessage message;
    message.set_kind(kind);
    message.mutable_generation()->set_number(point.number());
    return net::send_message(stream_, net::FrameType::kControl, message, Deadline::after(kSayWait));
  }

  // Nothing here may fail the session: what is too much today is too much tomorrow, too.
  void tidy() {
    const std::string newest = memory::generation_name(line_, number_);
    if (chain_ > base_chain_ + kReplicaChainMax) {
      const auto squashed = host_.store->squash(newest);
      if (!squashed) spdlog::warn("squash {}: {}", newest, squashed.error().message());
      if (squashed) chain_ = squashed->chain;
    }
    // What the Hello named stays: a new line would begin there.
    remove_older(*host_.store, hello_.vm().id(), line_, number_, base_);
  }

  net::Stream& stream_;
  const v1::PeerHello& hello_;
  const ReplicaHost& host_;
  const std::string line_;
  memory::Digest base_;           // of the template; none(): the zero template
  std::uint32_t base_chain_ = 1;  // of the template; on the zero template the first generation is a base
  memory::Digest sealed_;         // of the newest generation here; none(): none yet
  std::uint64_t number_ = 0;      // of the same
  std::uint32_t chain_ = 0;       // of the same
  memory::Digest parent_;         // of the generation under way
  memory::Digest digest_;         // of the generation under way
  bool fenced_ = false;           // somebody has recovered the VM
  std::unique_ptr<memory::GuestMemory> staging_;
};

}  // namespace

Status receive_replica(net::Stream& stream, const v1::PeerHello& hello, const ReplicaHost& host) {
  ReplicaReceiver receiver(stream, hello, host);
  Status status = receiver.run();
  if (!status && status.error().code() != Errc::kUnavailable) {
    const auto kind = receiver.fenced() ? v1::PEER_FENCED : v1::PEER_REJECTED;
    (void)net::send_message(stream, net::FrameType::kControl, to_message(kind, status.error()),
                            Deadline::after(kSayWait));
  }
  return status;
}

}  // namespace fvmm::migration
