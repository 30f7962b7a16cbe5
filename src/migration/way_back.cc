#include "migration/way_back.h"

#include <fmt/format.h>

#include <algorithm>

namespace fvmm::migration {
namespace {

memory::Digest hash_at(const memory::GuestMemory& memory, memory::PageIndex page) {
  return memory::hash_page(memory.pages({page, 1}).first<kPageBytes>());
}

/// Ranges as they travel: ascending, not empty, inside the guest.
Status clear_written(const v1::PeerMessage& message, memory::Bitmap& pages) {
  const auto ranges = static_cast<std::size_t>(message.written_size()) / 2;
  if (message.written_size() % 2 != 0 || ranges > kWrittenRangesMax) {
    return Error(Errc::kDataLoss, fmt::format("WAY_BACK with {} numbers for ranges", message.written_size()));
  }
  std::uint64_t next = 0;
  for (std::size_t i = 0; i < ranges; ++i) {
    const std::uint64_t first = message.written(static_cast<int>(2 * i));
    const std::uint64_t count = message.written(static_cast<int>(2 * i + 1));
    if (first < next || first >= pages.pages() || count == 0 || count > pages.pages() - first) {
      return Error(Errc::kDataLoss,
                   fmt::format("WAY_BACK: {} pages from {} of a guest of {}", count, first, pages.pages()));
    }
    next = first + count;
    for (memory::PageIndex page = first; page < next; ++page) pages.clear(page);
  }
  return {};
}

}  // namespace

bool may_go_by_way_back(const Guest& guest, const std::string& peer) {
  return guest.way_back && guest.way_back->peer == peer && guest.way_back->agreed != WayBack::Agreed::kOpen;
}

ArrivedPages::ArrivedPages(memory::Bitmap arrived, const memory::Digest& base, std::uint64_t memory_bytes)
    : written_(arrived.pages()), ranges_(arrived.ranges(kHashSlicePages)), chain_(base, memory_bytes) {}

// Hashed first, the log read after: a page that is not in it then is as it arrived.
Result<bool> ArrivedPages::next(Guest& guest) {
  if (!guest.way_back) return Error(Errc::kFailedPrecondition, "the VM has no way back");
  const memory::Bitmap& since = guest.way_back->since->pending();
  std::vector<std::pair<memory::PageIndex, memory::Digest>> hashes;
  std::uint64_t looked_at = 0;
  const std::size_t begin = at_;
  for (; at_ < ranges_.size() && looked_at + ranges_[at_].count <= kHashSlicePages; ++at_) {
    looked_at += ranges_[at_].count;
    for (std::uint64_t i = 0; i < ranges_[at_].count; ++i) {
      const memory::PageIndex page = ranges_[at_].first + i;
      if (!since.test(page)) hashes.emplace_back(page, hash_at(guest.machine->memory(), page));
    }
  }
  FVMM_TRY(guest.machine->dirty().harvest());
  for (const auto& [page, hash] : hashes) {
    if (!since.test(page)) chain_.add(page, hash);
  }
  for (std::size_t i = begin; i < at_; ++i) {
    for (memory::PageIndex page = ranges_[i].first; page < ranges_[i].first + ranges_[i].count; ++page) {
      if (since.test(page)) written_.set(page);
    }
  }
  return at_ < ranges_.size();
}

Result<v1::PeerMessage> way_back_message(const memory::Digest& digest, const memory::Bitmap& written) {
  const auto ranges = written.ranges(written.pages());
  if (ranges.size() > kWrittenRangesMax) {
    return Error(Errc::kResourceExhausted, fmt::format("the guest has written {} ranges of what arrived, more than {}",
                                                       ranges.size(), kWrittenRangesMax));
  }
  v1::PeerMessage message;
  message.set_kind(v1::PEER_WAY_BACK);
  message.set_digest(digest.raw());
  for (const memory::PageRange& range : ranges) {
    message.add_written(range.first);
    message.add_written(range.count);
  }
  return message;
}

Status check_way_back(const v1::PeerMessage& message, const memory::GuestMemory& memory, const memory::Bitmap& sent,
                      const memory::Digest& base) {
  if (message.kind() != v1::PEER_WAY_BACK) {
    return Error(Errc::kDataLoss, v1::PeerKind_Name(message.kind()) + " where WAY_BACK was due: " + message.reason());
  }
  memory::Bitmap pages = sent;
  FVMM_TRY(clear_written(message, pages));
  memory::DigestChain chain(base, memory.layout().ram_bytes());
  for (const memory::PageRange& range : pages.ranges(pages.pages())) {
    for (std::uint64_t i = 0; i < range.count; ++i) chain.add(range.first + i, hash_at(memory, range.first + i));
  }
  const memory::Digest ours = chain.finish();
  if (ours.raw() == message.digest()) return {};
  return Error(Errc::kDataLoss,
               fmt::format("of {} pages that left, the peer has others: digest {} here, {} there", chain.pages(),
                           ours.hex(), Id::from_bytes(message.digest()).value_or(Id{}).hex()));
}

}  // namespace fvmm::migration
