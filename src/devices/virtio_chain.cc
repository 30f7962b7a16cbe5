// From a descriptor's index to a checked chain, and the copies in and out of it.
#include <algorithm>
#include <array>

#include "base/check.h"
#include "devices/virtio_abi.h"
#include "devices/virtio_queue.h"

namespace fvmm::devices {
using namespace virtio;

namespace {

template <typename T>
T get(const std::byte* from) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value | static_cast<T>(static_cast<T>(std::to_integer<std::uint8_t>(from[i])) << (8 * i)));
  }
  return value;
}

/// Calls `piece(address, bytes)` for each part of [offset, offset + bytes) that the buffers cover, in order; their sum.
template <typename Piece>
std::uint64_t each_piece(std::span<const GuestBuffer> buffers, std::uint64_t offset, std::uint64_t bytes, Piece piece) {
  std::uint64_t done = 0;
  for (const GuestBuffer& buffer : buffers) {
    if (done == bytes) break;
    if (offset >= buffer.bytes) {
      offset -= buffer.bytes;
      continue;
    }
    const std::uint64_t part = std::min(buffer.bytes - offset, bytes - done);
    piece(buffer.address + offset, part, done);
    done += part;
    offset = 0;
  }
  return done;
}

}  // namespace

void Chain::start(memory::GuestMemory& memory, std::uint16_t head) {
  memory_ = &memory;
  head_ = head;
  readable_ = 0;
  readable_bytes_ = 0;
  writable_bytes_ = 0;
  buffers_.clear();
}

std::size_t Chain::read(std::uint64_t offset, std::span<std::byte> out) const {
  return each_piece(readable(), offset, out.size(), [&](std::uint64_t address, std::uint64_t part, std::uint64_t at) {
    FVMM_CHECK(memory_->read(address, out.subspan(at, part)).ok(), "the queue has checked the buffer");
  });
}

std::size_t Chain::write(std::uint64_t offset, std::span<const std::byte> in) const {
  return each_piece(writable(), offset, in.size(), [&](std::uint64_t address, std::uint64_t part, std::uint64_t at) {
    FVMM_CHECK(memory_->write(address, in.subspan(at, part)).ok(), "the queue has checked the buffer");
  });
}

void Chain::append_readable(std::uint64_t offset, std::uint64_t bytes, std::vector<iovec>& out) const {
  each_piece(readable(), offset, bytes, [&](std::uint64_t address, std::uint64_t part, std::uint64_t) {
    out.push_back({.iov_base = memory_->io_view(address, part).data(), .iov_len = part});
  });
}

void Chain::append_writable(std::uint64_t offset, std::uint64_t bytes, std::vector<iovec>& out) const {
  each_piece(writable(), offset, bytes, [&](std::uint64_t address, std::uint64_t part, std::uint64_t) {
    out.push_back({.iov_base = memory_->io_view(address, part).data(), .iov_len = part});
  });
}

void Chain::mark_written(std::uint64_t offset, std::uint64_t bytes) const {
  each_piece(writable(), offset, bytes,
             [&](std::uint64_t address, std::uint64_t part, std::uint64_t) { memory_->mark_written(address, part); });
}

Virtqueue::Descriptor Virtqueue::descriptor(const Table& table, std::uint32_t index) const {
  std::array<std::byte, kDescriptorBytes> bytes{};
  FVMM_CHECK(memory_.read(table.address + kDescriptorBytes * index, bytes).ok(), "a checked table lies in RAM");
  return {.address = get<std::uint64_t>(bytes.data()),
          .bytes = get<std::uint32_t>(bytes.data() + 8),
          .flags = get<std::uint16_t>(bytes.data() + 12),
          .next = get<std::uint16_t>(bytes.data() + 14)};
}

// Each descriptor is read once, so what was checked is what is used. A table is visited at most once an entry: more is
// a loop.
bool Virtqueue::walk(std::uint16_t head, Chain& chain) {
  chain.start(memory_, head);
  Table table{.address = rings_.descriptors, .entries = rings_.size};
  bool in_indirect = false;
  std::uint32_t index = head;
  for (std::uint32_t visited = 0;;) {
    if (index >= table.entries) return fail(GuestFault::kDescriptorIndex);
    if (visited++ == table.entries) return fail(GuestFault::kChainLength);
    const Descriptor next = descriptor(table, index);
    if ((next.flags & kDescriptorIndirect) != 0) {
      if (!enter_indirect(next, in_indirect, table)) return false;
      in_indirect = true;
      index = 0;
      visited = 0;
      continue;
    }
    if (!append(next, chain)) return false;
    if ((next.flags & kDescriptorNext) == 0) return true;
    index = next.next;
  }
}

bool Virtqueue::enter_indirect(const Descriptor& descriptor, bool nested, Table& table) {
  const std::uint64_t entries = descriptor.bytes / kDescriptorBytes;
  if (!indirect_ || nested || (descriptor.flags & kDescriptorNext) != 0 || entries == 0 || entries > kChainBuffersMax ||
      descriptor.bytes % kDescriptorBytes != 0 || !memory_.layout().ram_offset(descriptor.address, descriptor.bytes)) {
    return fail(GuestFault::kIndirectTable);
  }
  table = {.address = descriptor.address, .entries = static_cast<std::uint32_t>(entries)};
  return true;
}

bool Virtqueue::append(const Descriptor& descriptor, Chain& chain) {
  const bool writable = (descriptor.flags & kDescriptorWrite) != 0;
  if (descriptor.bytes == 0) return fail(GuestFault::kZeroLength);
  if (!memory_.layout().ram_offset(descriptor.address, descriptor.bytes)) return fail(GuestFault::kBufferAddress);
  if (!writable && chain.writable_bytes_ != 0) return fail(GuestFault::kBufferOrder);
  if (chain.buffers_.size() == kChainBuffersMax) return fail(GuestFault::kChainLength);
  if (descriptor.bytes > kChainBytesMax - chain.readable_bytes_ - chain.writable_bytes_) {
    return fail(GuestFault::kBufferBytes);
  }
  chain.buffers_.push_back({.address = descriptor.address, .bytes = descriptor.bytes});
  (writable ? chain.writable_bytes_ : chain.readable_bytes_) += descriptor.bytes;
  if (!writable) ++chain.readable_;
  return true;
}

}  // namespace fvmm::devices
