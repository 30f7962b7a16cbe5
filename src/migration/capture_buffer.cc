#include "migration/capture_buffer.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/units.h"

namespace fvmm::migration {
namespace {

Error broken_off() {
  return {Errc::kUnavailable, "the link to the peer is down"};
}

}  // namespace

Result<std::unique_ptr<CaptureBuffer>> CaptureBuffer::create(std::uint64_t bytes_max) {
  if (bytes_max < kCaptureBufferMin || bytes_max > kCaptureBufferMax) {
    return Error(Errc::kInvalidArgument, fmt::format("a buffer of {}: between {} and {}", format_bytes(bytes_max),
                                                     format_bytes(kCaptureBufferMin), format_bytes(kCaptureBufferMax)));
  }
  const std::uint64_t slots = bytes_max / kPageBytes;
  void* const arena =
      ::mmap(nullptr, slots * kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (arena == MAP_FAILED) return Error(Errc::kResourceExhausted, "memory for the capture buffer", errno);
  return std::unique_ptr<CaptureBuffer>(new CaptureBuffer(static_cast<std::byte*>(arena), slots));
}

// The lowest slot is taken first, so that a buffer that is never full keeps its memory small.
CaptureBuffer::CaptureBuffer(std::byte* arena, std::uint64_t slots) : arena_(arena), slots_(slots), free_(slots) {
  std::iota(free_.rbegin(), free_.rend(), 0U);
}

CaptureBuffer::~CaptureBuffer() {
  ::munmap(arena_, slots_ * kPageBytes);
}

Status CaptureBuffer::wait_for(std::unique_lock<std::mutex>& lock, std::uint64_t slots) {
  if (!usable()) return broken_off();
  if (free_.size() >= slots) return {};
  ++figures_.waits;
  const auto began = std::chrono::steady_clock::now();
  const auto ready = [&] { return !usable() || free_.size() >= slots; };
  bool wanted = false;
  while (!wanted && !room_.wait_for(lock, kRoomLook, ready)) {
    lock.unlock();
    wanted = give_up_ && give_up_();
    lock.lock();
  }
  figures_.waited += std::chrono::steady_clock::now() - began;
  if (wanted && !ready()) return Error(Errc::kCancelled, "a command wants the VM, and the buffer is full");
  return usable() ? Status{} : broken_off();
}

Status CaptureBuffer::begin(std::function<bool()> give_up) {
  const std::lock_guard lock(mutex_);
  give_up_ = std::move(give_up);
  link_ = links_;
  return open_ ? Status{} : broken_off();
}

Status CaptureBuffer::put(memory::PageRange range, const std::byte* bytes) {
  for (std::uint64_t i = 0; i < range.count; ++i) {
    std::unique_lock lock(mutex_);
    FVMM_TRY(wait_for(lock, 1));
    const std::uint32_t slot = free_.back();
    free_.pop_back();
    std::memcpy(arena_ + std::uint64_t{slot} * kPageBytes, bytes + i * kPageBytes, kPageBytes);
    queue_.emplace_back(BufferedPage{range.first + i, slot});
    figures_.bytes += kPageBytes;
    ++figures_.pages_in;
  }
  ready_.notify_one();
  return {};
}

Status CaptureBuffer::reserve(std::uint64_t pages) {
  if (pages > slots_) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("the guest dirties {} between two looks, more than the buffer of {} holds; raise --buffer",
                             format_bytes(pages * kPageBytes), format_bytes(bytes_max())));
  }
  std::unique_lock lock(mutex_);
  return wait_for(lock, pages);
}

Status CaptureBuffer::finish(GenerationEnd end) {
  const std::lock_guard lock(mutex_);
  if (!usable()) return broken_off();
  queue_.emplace_back(std::move(end));
  ready_.notify_one();
  return {};
}

std::optional<BufferItem> CaptureBuffer::take(std::size_t pages_max, const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  if (!ready_.wait_until(lock, deadline.at(), [&] { return !queue_.empty(); })) return std::nullopt;
  if (auto* const end = std::get_if<GenerationEnd>(&queue_.front())) {
    BufferItem item(std::move(*end));
    queue_.pop_front();
    return item;
  }
  std::vector<BufferedPage> pages;
  while (!queue_.empty() && pages.size() < pages_max) {
    const auto* const page = std::get_if<BufferedPage>(&queue_.front());
    if (page == nullptr) break;
    pages.push_back(*page);
    queue_.pop_front();
  }
  return BufferItem(std::move(pages));
}

void CaptureBuffer::release(std::span<const BufferedPage> pages) {
  const std::lock_guard lock(mutex_);
  for (const BufferedPage& page : pages) free_.push_back(page.slot);
  figures_.bytes -= pages.size() * kPageBytes;
  room_.notify_all();
}

void CaptureBuffer::break_off() {
  const std::lock_guard lock(mutex_);
  open_ = false;
  ++links_;
  for (const auto& item : queue_) {
    if (const auto* const page = std::get_if<BufferedPage>(&item)) {
      free_.push_back(page->slot);
      figures_.bytes -= kPageBytes;
    }
  }
  queue_.clear();
  room_.notify_all();
}

void CaptureBuffer::open() {
  const std::lock_guard lock(mutex_);
  open_ = true;
}

BufferFigures CaptureBuffer::figures() const {
  const std::lock_guard lock(mutex_);
  return figures_;
}

}  // namespace fvmm::migration
