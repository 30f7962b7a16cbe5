#include "migration/template_push.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "migration/page_sender.h"
#include "migration/page_table.h"
#include "migration/refusal.h"
#include "migration/template_ref.h"
#include "migration/transport.h"
#include "net/frame.h"

namespace fvmm::migration {
namespace {

constexpr std::uint64_t kDeltaPages = 256;       // read at a time, one by one
constexpr std::uint64_t kWholePages = 512;       // read at a time, in one call; with the socket's copy it fits a cache
constexpr std::size_t kHashBytes = 1024 * 1024;  // of hashes in one message

Result<v1::PeerMessage> hear(net::Stream& stream, const Deadline& deadline) {
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(stream, net::FrameType::kControl, message, deadline));
  if (message.kind() == v1::PEER_REJECTED) return refusal(message, "of the push");
  return message;
}

/// What every form of a push does beside its pages.
struct Sending {
  net::Stream& stream;
  const Deadline& deadline;
  const std::function<bool(const PushProgress&)>& progress;
  PushStats& stats;
  std::uint64_t total = 0;  // bytes, for the progress

  Status report(const PageSender& sender) const {
    if (!progress || progress({sender.counters().bytes, total})) return {};
    return Error(Errc::kCancelled, "push cancelled");
  }
  Status end(PageSender& sender) const {
    FVMM_TRY(sender.send_end(deadline));
    stats.bytes_sent = sender.counters().bytes;
    return {};
  }
};

std::string unreadable(const memory::PageRange& pages) {
  return fmt::format("{} pages from {} on cannot be read (\"fvmmctl template verify\" looks at all of them)",
                     pages.count, pages.first);
}

// A delta: its own pages, zero ones included; what lies below is at the peer.
Status send_delta(const memory::OpenTemplate& source, Sending& out) {
  PageSender sender(out.stream, nullptr);
  std::vector<std::byte> buffer(kDeltaPages * kPageBytes);
  memory::HashCursor cursor = FVMM_TRY(source.delta_hashes());
  out.total = source.info().pages * kPageBytes;
  while (cursor.entry()) {
    for (std::uint64_t i = 0; i < kDeltaPages && cursor.entry(); ++i) {
      const std::span<std::byte> page(buffer.data() + i * kPageBytes, kPageBytes);
      FVMM_TRY(source.read_pages({cursor.entry()->page, 1}, page), unreadable({cursor.entry()->page, 1}));
      FVMM_TRY(sender.add(cursor.entry()->page, page.data(), out.deadline));
      FVMM_TRY(cursor.advance());
    }
    FVMM_TRY(sender.flush(out.deadline));
    FVMM_TRY(out.report(sender));
  }
  return out.end(sender);
}

// A base, a folded generation, or a squashed delta (what its digest is chained to is gone): whole, but for its holes.
// Read, never mapped: a page that the disk does not give is an error here, and would be a SIGBUS there.
Status send_whole(const memory::OpenTemplate& source, Sending& out) {
  PageSender sender(out.stream, nullptr);
  std::vector<std::byte> buffer(kWholePages * kPageBytes);
  out.total = (source.info().is_delta() ? source.info().memory_bytes / kPageBytes : source.info().pages) * kPageBytes;
  for (const memory::PageRange& range : FVMM_TRY(source.image()->data_ranges())) {
    for (std::uint64_t done = 0; done < range.count; done += kWholePages) {
      const memory::PageRange part{range.first + done, std::min(kWholePages, range.count - done)};
      FVMM_TRY(source.read_pages(part, std::span(buffer).first(part.count * kPageBytes)), unreadable(part));
      for (std::uint64_t i = 0; i < part.count; ++i) {
        FVMM_TRY(sender.add(part.first + i, buffer.data() + i * kPageBytes, out.deadline));
      }
      FVMM_TRY(sender.flush(out.deadline));
      FVMM_TRY(out.report(sender));
    }
  }
  return out.end(sender);
}

// What ties a folded generation's digest to its parent's.
Status send_hashes(const memory::OpenTemplate& source, net::Stream& stream, const Deadline& deadline) {
  memory::HashCursor cursor = FVMM_TRY(source.delta_hashes());
  while (cursor.entry()) {
    v1::PeerMessage message;
    message.set_kind(v1::PEER_PUSH_HASHES);
    std::string& bytes = *message.mutable_hashes();
    while (cursor.entry() && bytes.size() < kHashBytes) {
      const memory::HashEntry entry = *cursor.entry();
      bytes.append(reinterpret_cast<const char*>(&entry), sizeof entry);
      FVMM_TRY(cursor.advance());
    }
    FVMM_TRY(net::send_message(stream, net::FrameType::kControl, message, deadline));
  }
  return {};
}

// Which form a template travels in. docs/wire-protocol.md.
const char* form_of(const memory::TemplateInfo& info) {
  if (travels_as_delta(info)) return "delta";
  return info.parent_digest.none() ? "" : "folded";
}

v1::PeerHello push_hello(const memory::TemplateInfo& info) {
  v1::PeerHello hello;
  hello.set_version(kPeerVersion);
  hello.set_purpose(v1::PUSH_TEMPLATE);
  hello.set_session(Id::random().raw());
  *hello.mutable_vm() = info.config;
  *hello.mutable_template_() = to_ref(info);
  hello.set_form(form_of(info));
  if (info.parent_digest.none()) return hello;
  hello.mutable_parent()->set_id(info.parent_id.raw());
  hello.mutable_parent()->set_name(info.parent_name);
  hello.mutable_parent()->set_digest(info.parent_digest.raw());
  return hello;
}

}  // namespace

bool travels_as_delta(const memory::TemplateInfo& info) {
  return info.is_delta() && info.below_digest == info.parent_digest;
}

Result<PushStats> push_template(const memory::OpenTemplate& source, const net::Endpoint& to, const Deadline& deadline,
                                const std::function<bool(const PushProgress&)>& progress) {
  const auto stream = FVMM_TRY(net::Channel::connect(to, deadline));
  return push_template(source, *stream, deadline, progress);
}

Result<PushStats> push_template(const memory::OpenTemplate& source, net::Stream& stream, const Deadline& deadline,
                                const std::function<bool(const PushProgress&)>& progress) {
  const auto began = std::chrono::steady_clock::now();
  const memory::TemplateInfo& info = source.info();
  FVMM_TRY(net::send_message(stream, net::FrameType::kHello, push_hello(info), deadline), "push " + info.name);
  PushStats stats;
  const v1::PeerMessage first = FVMM_TRY(hear(stream, deadline), "push " + info.name);
  stats.already_there = first.kind() == v1::PEER_PUSH_HAVE;
  if (!stats.already_there && first.kind() != v1::PEER_PUSH_READY) {
    return Error(Errc::kDataLoss, "push: the peer neither has the template nor is ready for it");
  }
  if (!stats.already_there) {
    const bool delta = travels_as_delta(info);
    const auto send = delta ? send_delta : send_whole;
    Sending out{stream, deadline, progress, stats};
    FVMM_TRY(send(source, out), "push " + info.name);
    if (!delta && !info.parent_digest.none()) {
      FVMM_TRY(send_hashes(source, stream, deadline), "push " + info.name);
    }
    v1::PeerMessage end;
    end.set_kind(v1::PEER_PUSH_END);
    *end.mutable_state() = FVMM_TRY(source.machine_state());
    FVMM_TRY(net::send_message(stream, net::FrameType::kControl, end, deadline), "push " + info.name);
    const v1::PeerMessage sealed = FVMM_TRY(hear(stream, deadline), "push " + info.name);
    if (sealed.kind() != v1::PEER_PUSH_SEALED)
      return Error(Errc::kDataLoss, "push: the peer did not say that it sealed");
  }
  stats.duration_ms = to_ms(std::chrono::steady_clock::now() - began);
  return stats;
}

}  // namespace fvmm::migration
