#include "devices/virtio_balloon.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "devices/virtio_abi.h"
#include "memory/guest_memory.h"

namespace fvmm::devices {
namespace {

// Section 5.5.2 numbers the queues as if each feature was there: reporting is 4. Linux numbers those that there are: 3
// without FREE_PAGE_HINT, which is not offered, and 2 when it takes no statistics either. Both are served.
constexpr std::array<std::uint16_t, 5> kQueueSizes{kBalloonQueueSize, kBalloonQueueSize, kBalloonQueueSize,
                                                   kBalloonQueueSize, kBalloonQueueSize};
constexpr unsigned kInflateQueue = 0;
constexpr unsigned kDeflateQueue = 1;
constexpr unsigned kStatisticsQueue = 2;

// MUST_TELL_HOST is not offered: what is given back is there again at a touch. PAGE_POISON must never be: a discarded
// page holds the template's bytes, not the driver's pattern.
constexpr std::uint64_t kFeatureStatistics = 1ULL << 1;
constexpr std::uint64_t kFeatureDeflateOnOom = 1ULL << 2;
constexpr std::uint64_t kFeatureReporting = 1ULL << 5;

constexpr std::size_t kPfnBytes = 4;
constexpr std::size_t kActualOffset = 4;
constexpr std::size_t kStatBytes = 10;  // tag and value, packed

std::uint64_t number(std::span<const std::byte> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) value |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  return value;
}

}  // namespace

std::uint32_t VirtioBalloon::type() const {
  return virtio::kTypeBalloon;
}

std::uint64_t VirtioBalloon::features() const {
  return kFeatureStatistics | kFeatureDeflateOnOom | kFeatureReporting;
}

std::span<const std::uint16_t> VirtioBalloon::queue_sizes() const {
  return kQueueSizes;
}

void VirtioBalloon::read_config(std::uint64_t offset, std::span<std::byte> out) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t all = figures_.target_pages | std::uint64_t{figures_.actual_pages} << 32;
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::byte>(all >> (8 * (offset + i)));
}

// The driver writes "actual", of which every width is taken; the rest is ours.
void VirtioBalloon::write_config(std::uint64_t offset, std::span<const std::byte> in) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < in.size(); ++i) {
    if (offset + i < kActualOffset) continue;
    const auto shift = 8 * static_cast<unsigned>(offset + i - kActualOffset);
    figures_.actual_pages = (figures_.actual_pages & ~(0xffU << shift)) | std::to_integer<std::uint32_t>(in[i])
                                                                              << shift;
  }
}

VirtioBalloon::Role VirtioBalloon::role(unsigned queue) const {
  if (queue == kInflateQueue) return Role::kInflate;
  if (queue == kDeflateQueue) return Role::kDeflate;
  if (queue == kStatisticsQueue && (driver_.features & kFeatureStatistics) != 0) return Role::kStatistics;
  return (driver_.features & kFeatureReporting) != 0 ? Role::kReporting : Role::kNone;
}

Virtqueue* VirtioBalloon::statistics_queue() {
  const bool there = driver_.queues.size() > kStatisticsQueue && role(kStatisticsQueue) == Role::kStatistics;
  return there ? &driver_.queues[kStatisticsQueue] : nullptr;
}

void VirtioBalloon::notify(unsigned queue) {
  Budget budget{.pages = kBalloonDiscardPages};
  if (queue < driver_.queues.size()) serve(queue, budget);
}

void VirtioBalloon::serve(unsigned index, Budget& budget) {
  Virtqueue& queue = driver_.queues[index];
  const Role what = role(index);
  if (what == Role::kNone) return;
  if (what == Role::kStatistics) return take_statistics(queue);
  for (auto left = queue.arm(); left > 0 && queue.pop(chain_); --left) {
    if (what == Role::kReporting) {
      take_report(budget);
    } else if (!take_pfns(what == Role::kInflate, budget)) {
      return driver_.signals->fault(GuestFault::kRequest);
    }
    queue.push(chain_, 0);
  }
  queue.interrupt();
}

// An array of page numbers, each of which is looked at before the first is acted on. In order, so that neighbours go
// together: a driver gives up pages as its allocator hands them out. A deflated page is there again at a touch.
bool VirtioBalloon::take_pfns(bool inflate, Budget& budget) {
  const std::uint64_t bytes = chain_.readable_bytes();
  if (bytes == 0 || bytes % kPfnBytes != 0 || bytes > kPfnBytes * kBalloonRequestPfnsMax) return false;
  std::array<std::byte, kPageBytes> piece{};
  pfns_.clear();
  for (std::uint64_t at = 0; at < bytes; at += piece.size()) {
    const std::size_t got = chain_.read(at, std::span(piece).first(std::min<std::uint64_t>(piece.size(), bytes - at)));
    for (std::size_t i = 0; i < got; i += kPfnBytes) {
      const auto pfn = static_cast<std::uint32_t>(number(std::span(piece).subspan(i, kPfnBytes)));
      if (!driver_.memory->layout().ram_offset(pfn * kPageBytes, kPageBytes)) return false;
      pfns_.push_back(pfn);
    }
  }
  if (!inflate) return true;
  std::ranges::sort(pfns_);
  pfns_.erase(std::unique(pfns_.begin(), pfns_.end()), pfns_.end());
  for (std::size_t first = 0; first < pfns_.size();) {
    std::size_t end = first + 1;
    while (end < pfns_.size() && pfns_[end] == pfns_[first] + (end - first)) ++end;
    give_back(pfns_[first] * kPageBytes, (end - first) * kPageBytes, budget);
    first = end;
  }
  return true;
}

// Section 5.5.6.7: the buffers themselves are the free memory, and may hold anything once answered. Of each its whole
// pages.
void VirtioBalloon::take_report(Budget& budget) {
  for (const auto buffers : {chain_.readable(), chain_.writable()}) {
    for (const GuestBuffer& buffer : buffers) {
      const std::uint64_t first = (buffer.address + kPageBytes - 1) / kPageBytes;
      const std::uint64_t end = (buffer.address + buffer.bytes) / kPageBytes;
      if (first < end) give_back(first * kPageBytes, (end - first) * kPageBytes, budget);
    }
  }
}

// One run of pages, which lies in one slot: page numbers on both sides of the hole below 4 GiB are no neighbours.
void VirtioBalloon::give_back(std::uint64_t address, std::uint64_t bytes, Budget& budget) {
  const std::uint64_t pages = std::min(bytes / kPageBytes, budget.pages);
  budget.pages -= pages;
  Status given;
  if (pages > 0) given = driver_.memory->discard(address, pages * kPageBytes);
  if (!given && !complained_) spdlog::warn("virtio-balloon: pages stay with the guest: {}", given.error().message());
  complained_ = complained_ || !given;
  const std::lock_guard lock(mutex_);
  figures_.not_given_back += bytes / kPageBytes - (given ? pages : 0);
  if (given) figures_.given_back += pages;
}

// One buffer is the device's until it wants newer figures (section 5.5.6.3); a second one sets the first free.
void VirtioBalloon::take_statistics(Virtqueue& queue) {
  for (auto left = queue.arm(); left > 0 && queue.pop(chain_); --left) {
    let_statistics_go(queue);
    std::array<std::byte, kStatBytes * kBalloonStatsRead> bytes{};
    const std::size_t got = chain_.read(0, bytes);
    BalloonStatistics told;
    for (std::size_t at = 0; at + kStatBytes <= got; at += kStatBytes) {
      const std::uint64_t tag = number(std::span(bytes).subspan(at, 2));
      if (tag < told.size()) told[tag] = number(std::span(bytes).subspan(at + 2, 8));
    }
    {
      const std::lock_guard lock(mutex_);
      figures_.statistics = told;
    }
    std::swap(held_, chain_);
    holds_ = true;
  }
  queue.interrupt();
}

void VirtioBalloon::let_statistics_go(Virtqueue& queue) {
  if (holds_) queue.push(held_, 0);
  holds_ = false;
}

// Linux offers its first buffer before DRIVER_OK, when no notification counts: so it is looked for here.
void VirtioBalloon::ask_statistics() {
  Virtqueue* const queue = statistics_queue();
  if (queue == nullptr || quiet_) return;
  if (!holds_) take_statistics(*queue);
  if (!holds_ || driver_.signals->needs_reset()) return;
  let_statistics_go(*queue);
  queue->interrupt();
}

void VirtioBalloon::set_target(std::uint32_t pages) {
  {
    const std::lock_guard lock(mutex_);
    if (figures_.target_pages == pages) return;
    figures_.target_pages = pages;
  }
  if (driver_.signals != nullptr) driver_.signals->config_changed();
}

BalloonFigures VirtioBalloon::figures() const {
  const std::lock_guard lock(mutex_);
  return figures_;
}

// The host still wants what it wanted; the next driver begins without a page.
void VirtioBalloon::reset() {
  driver_ = {};
  holds_ = false;
  const std::lock_guard lock(mutex_);
  figures_.actual_pages = 0;
  figures_.statistics = {};
}

// The held buffer goes back into its queue untaken, so that nothing is in flight; resume() finds it there.
Status VirtioBalloon::quiesce(const Deadline&) {
  if (Virtqueue* const queue = statistics_queue(); holds_ && queue != nullptr) queue->unpop();
  holds_ = false;
  quiet_ = true;
  return {};
}

// Without discards: the VM's owner calls this, on whom a capture that has just begun may depend (InstantCopy). What
// waits here was offered around a pause; it is answered and stays with the guest, which is always allowed.
void VirtioBalloon::resume() {
  quiet_ = false;
  Budget none{.pages = 0};
  for (unsigned queue = 0; queue < driver_.queues.size(); ++queue) serve(queue, none);
}

}  // namespace fvmm::devices
