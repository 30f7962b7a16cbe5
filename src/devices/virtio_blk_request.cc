// One request of virtio-blk, section 5.2.6: header, data, status; what it asks of the disk, and its answer.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "devices/virtio_blk.h"

namespace fvmm::devices {
namespace {

enum RequestType : std::uint32_t { kIn = 0, kOut = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kWriteZeroes = 13 };

struct Header {
  std::uint32_t type;
  std::uint32_t reserved;
  std::uint64_t sector;
};
static_assert(sizeof(Header) == 16);

/// struct virtio_blk_discard_write_zeroes
struct Range {
  std::uint64_t sector;
  std::uint32_t sectors;
  std::uint32_t flags;  // bit 0: unmap, of write-zeroes
};
static_assert(sizeof(Range) == 16);

template <class T>
bool read_at(const Chain& chain, std::uint64_t offset, T& out) {
  return chain.read(offset, std::as_writable_bytes(std::span(&out, 1))) == sizeof(T);
}

/// Where the sectors lie in bytes; past every disk when that is more than 64 bits hold.
std::uint64_t bytes_of(std::uint64_t sectors) {
  return sectors > ~0ULL / disk::kSectorBytes ? ~0ULL - ~0ULL % disk::kSectorBytes : sectors * disk::kSectorBytes;
}

}  // namespace

void VirtioBlk::serve(Virtqueue& queue) {
  while (auto left = queue.arm()) {
    for (; left > 0; --left) {
      auto pending = std::make_unique<Pending>();
      if (!queue.pop(pending->chain)) return;
      begin(std::move(pending));
    }
  }
}

void VirtioBlk::begin(std::unique_ptr<Pending> pending) {
  using Kind = disk::Request::Kind;
  const Chain& chain = pending->chain;
  Header header{};
  if (chain.writable_bytes() == 0 || !read_at(chain, 0, header)) {
    driver_.signals->count(GuestFault::kRequest);
    return answer(*pending, Answer::kFailed);
  }
  disk::Request request{
      .kind = Kind::kRead, .offset = bytes_of(header.sector), .bytes = 0, .data = {}, .token = next_token_++};
  switch (header.type) {
    case kIn:
      request.bytes = pending->filled = chain.writable_bytes() - 1;
      chain.append_writable(0, request.bytes, request.data);
      break;
    case kOut:
      request.kind = Kind::kWrite;
      request.bytes = chain.readable_bytes() - sizeof(Header);
      chain.append_readable(sizeof(Header), request.bytes, request.data);
      break;
    case kFlush:
      request.kind = Kind::kFlush;
      request.offset = 0;
      break;
    case kDiscard:
    case kWriteZeroes: {
      Range range{};
      const bool one =
          chain.readable_bytes() == sizeof(Header) + sizeof(Range) && read_at(chain, sizeof(Header), range);
      const std::uint32_t known_flags = header.type == kWriteZeroes ? 1 : 0;
      if (!one || range.sectors > kBlkRangeSectorsMax) return answer(*pending, Answer::kFailed);
      if ((range.flags & ~known_flags) != 0) return answer(*pending, Answer::kUnsupported);
      request.kind = header.type == kDiscard ? Kind::kDiscard : Kind::kWriteZeroes;
      request.offset = bytes_of(range.sector);
      request.bytes = range.sectors * disk::kSectorBytes;
      break;
    }
    case kGetId: {
      std::array<std::byte, kBlkIdBytes> id{};
      std::memcpy(id.data(), id_.data(), std::min(id_.size(), id.size()));
      pending->filled = std::min<std::uint64_t>(id.size(), chain.writable_bytes() - 1);
      chain.write(0, std::span(id).first(pending->filled));
      return answer(*pending, Answer::kOk);
    }
    default:
      return answer(*pending, Answer::kUnsupported);
  }
  pending_[request.token] = std::move(pending);
  start(std::move(request));
}

// A raw image is outside the VM: what is written there has left. A layer belongs to the VM as its memory does.
void VirtioBlk::start(disk::Request request) {
  if (!raw_ || request.kind == disk::Request::Kind::kRead) return engine_->start(std::move(request));
  const std::uint64_t token = request.token;
  const auto cost = sizeof(request) + request.data.size() * sizeof(iovec);  // the data stays in guest memory
  const bool passed = gate_.pass(cost, [this, request = std::move(request)]() mutable {
    {
      const std::lock_guard lock(cleared_mutex_);
      cleared_.push_back(std::move(request));
    }
    wake();
  });
  if (!passed) ended(token, Error(Errc::kResourceExhausted, "the output gate is full"));
}

void VirtioBlk::take_cleared() {
  std::vector<disk::Request> cleared;
  {
    const std::lock_guard lock(cleared_mutex_);
    cleared.swap(cleared_);
  }
  for (disk::Request& request : cleared) engine_->start(std::move(request));
}

void VirtioBlk::ended(std::uint64_t token, const Status& status) {
  const auto found = pending_.find(token);
  FVMM_CHECK(found != pending_.end(), "a disk request that nobody made has ended");
  const std::unique_ptr<Pending> pending = std::move(found->second);
  pending_.erase(found);
  if (!pending) {
    if (token == flush_token_) flushed_ = status;  // else of a flush() whose deadline passed
    return;
  }
  if (stopping_) return;
  if (!status && failures_logged_ < kBlkFailuresLoggedMax) {
    ++failures_logged_;
    spdlog::warn("disk \"{}\": {}", id_, status.error().message());
  }
  pending->chain.mark_written(0, pending->filled);  // also after an error: part of it may be there
  answer(*pending, status ? Answer::kOk : Answer::kFailed);
}

void VirtioBlk::answer(const Pending& pending, Answer answer) {
  const std::uint64_t room = pending.chain.writable_bytes();
  if (room != 0) {
    const std::byte status{static_cast<std::uint8_t>(answer)};
    pending.chain.write(room - 1, std::span(&status, 1));
  }
  // The status is the last byte, so all before it counts as written too.
  if (!driver_.queues.empty()) driver_.queues[0].push(pending.chain, static_cast<std::uint32_t>(room));
}

}  // namespace fvmm::devices
