#include "devices/virtio_queue.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "devices/virtio_abi.h"

namespace fvmm::devices {
using namespace virtio;

namespace {

// Byte counts of the rings, the event index at the end included.
constexpr std::uint64_t descriptors_bytes(std::uint16_t size) {
  return kDescriptorBytes * size;
}
constexpr std::uint64_t driver_bytes(std::uint16_t size) {
  return kRingHeaderBytes + 2ULL * size + 2;
}
constexpr std::uint64_t device_bytes(std::uint16_t size) {
  return kRingHeaderBytes + kUsedElementBytes * size + 2;
}

/// Section 2.7.7.1: the index passed `event` on its way from `before` to `now`.
constexpr bool passed(std::uint16_t event, std::uint16_t now, std::uint16_t before) {
  return static_cast<std::uint16_t>(now - event - 1) < static_cast<std::uint16_t>(now - before);
}
static_assert(passed(4, 5, 4) && !passed(5, 5, 4) && !passed(3, 5, 4) && passed(0xffff, 0, 0xffff));

void put(std::byte* to, std::uint32_t value) {
  for (unsigned i = 0; i < 4; ++i) to[i] = static_cast<std::byte>(value >> (8 * i));
}

}  // namespace

bool Virtqueue::fits(const memory::Layout& layout, const Rings& rings, std::uint16_t size_max) {
  if (!std::has_single_bit(rings.size) || rings.size > size_max) return false;
  if (rings.descriptors % kDescriptorAlign != 0 || rings.driver % kDriverRingAlign != 0 ||
      rings.device % kDeviceRingAlign != 0) {
    return false;
  }
  return layout.ram_offset(rings.descriptors, descriptors_bytes(rings.size)) &&
         layout.ram_offset(rings.driver, driver_bytes(rings.size)) &&
         layout.ram_offset(rings.device, device_bytes(rings.size));
}

void Virtqueue::enable(const Rings& rings, std::uint64_t features, const Indices& indices) {
  FVMM_CHECK(fits(memory_.layout(), rings, kQueueSizeMax), "the transport has checked the rings");
  rings_ = rings;
  indices_ = indices;
  seen_ = indices.next_available;
  event_idx_ = (features & kFeatureEventIdx) != 0;
  indirect_ = (features & kFeatureIndirect) != 0;
  disarmed_ = true;
  enabled_ = true;
}

void Virtqueue::disable() {
  enabled_ = false;
  rings_ = {};
  indices_ = {};
  seen_ = 0;
}

bool Virtqueue::fail(GuestFault fault) {
  signals_.fault(fault);
  return false;
}

// The rings are RAM: fits() has seen to it, and a VM's RAM never moves.
std::uint16_t Virtqueue::load(std::uint64_t address) const {
  const auto value = memory_.load_u16(address);
  FVMM_CHECK(value.has_value(), "a ring lies in RAM");
  return *value;
}

void Virtqueue::store(std::uint64_t address, std::uint16_t value) {
  FVMM_CHECK(memory_.store_u16(address, value), "a ring lies in RAM");
}

bool Virtqueue::look() {
  const std::uint16_t now = load(rings_.driver + 2);
  const auto ahead = static_cast<std::uint16_t>(now - indices_.next_available);
  if (ahead > rings_.size) return fail(GuestFault::kAvailableIndex);
  seen_ = now;
  return true;
}

// After the store the index is read again: the driver either sees what we ask for, or we see what it added. It can add
// no more than the queue has entries, so this ends; a driver that moves its index back and forth gets one turn an
// entry.
std::uint16_t Virtqueue::arm() {
  if (!usable()) return 0;
  for (std::uint32_t turn = 0; turn <= rings_.size; ++turn) {
    if (!look()) return 0;
    if (event_idx_) {
      store(rings_.device + kRingHeaderBytes + kUsedElementBytes * rings_.size, seen_);
    } else if (disarmed_) {
      store(rings_.device, 0);
    }
    disarmed_ = false;
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (load(rings_.driver + 2) == seen_) break;
  }
  return static_cast<std::uint16_t>(seen_ - indices_.next_available);
}

// With event indices the driver stays silent by itself: it has passed the index that was asked for.
void Virtqueue::disarm() {
  if (!usable() || disarmed_) return;
  disarmed_ = true;
  if (!event_idx_) store(rings_.device, kUsedNoNotify);
}

bool Virtqueue::waiting() {
  if (!usable()) return false;
  return indices_.next_available != seen_ || (look() && indices_.next_available != seen_);
}

bool Virtqueue::pop(Chain& chain) {
  if (!waiting()) return false;
  const std::uint64_t slot = indices_.next_available % rings_.size;
  if (!walk(load(rings_.driver + kRingHeaderBytes + 2 * slot), chain)) return false;
  ++indices_.next_available;
  return true;
}

void Virtqueue::unpop(std::uint16_t count) {
  FVMM_CHECK(count <= in_flight(), "only what was taken is given back");
  indices_.next_available = static_cast<std::uint16_t>(indices_.next_available - count);
}

void Virtqueue::push(const Chain& chain, std::uint32_t written_bytes) {
  fill(chain, written_bytes);
  publish();
}

void Virtqueue::fill(const Chain& chain, std::uint32_t written_bytes) {
  if (!enabled_) return;
  FVMM_CHECK(in_flight() > 0, "an answer belongs to a request");
  std::array<std::byte, kUsedElementBytes> element{};
  put(element.data(), chain.head());
  put(element.data() + 4, written_bytes);
  const std::uint64_t slot = indices_.next_used % rings_.size;
  const Status written = memory_.write(rings_.device + kRingHeaderBytes + kUsedElementBytes * slot, element);
  FVMM_CHECK(written.ok(), "a ring lies in RAM");
  ++indices_.next_used;
}

void Virtqueue::publish() {
  if (enabled_) store(rings_.device + 2, indices_.next_used);  // release: the elements first
}

void Virtqueue::interrupt() {
  if (!usable() || indices_.signalled_used == indices_.next_used) return;
  std::atomic_thread_fence(std::memory_order_seq_cst);  // the index first, then what the driver wants
  bool wanted = false;
  if (event_idx_) {
    const std::uint16_t event = load(rings_.driver + kRingHeaderBytes + 2ULL * rings_.size);
    wanted = passed(event, indices_.next_used, indices_.signalled_used);
  } else {
    wanted = (load(rings_.driver) & kAvailNoInterrupt) == 0;
  }
  indices_.signalled_used = indices_.next_used;
  if (wanted) signals_.used();
}

}  // namespace fvmm::devices
