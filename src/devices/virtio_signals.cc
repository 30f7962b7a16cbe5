#include "devices/virtio_signals.h"

#include "devices/virtio_abi.h"

namespace fvmm::devices {

std::string_view to_string(GuestFault fault) {
  static constexpr std::array<std::string_view, kGuestFaults> kNames{
      "queue setup",    "available index", "descriptor index", "chain length", "indirect table", "zero length",
      "buffer address", "buffer order",    "buffer bytes",     "request",      "register",       "notify"};
  return kNames.at(static_cast<std::size_t>(fault));
}

void VirtioSignals::used() {
  const std::lock_guard lock(mutex_);
  raise(virtio::kInterruptUsed);
}

void VirtioSignals::config_changed() {
  const std::lock_guard lock(mutex_);
  ++state_.config_generation;
  raise(virtio::kInterruptConfig);
}

void VirtioSignals::fault(GuestFault fault) {
  count(fault);
  const std::lock_guard lock(mutex_);
  state_.needs_reset = true;
  needs_reset_.store(true, std::memory_order_release);
  raise(virtio::kInterruptConfig);
}

void VirtioSignals::count(GuestFault fault) {
  faults_.at(static_cast<std::size_t>(fault)).fetch_add(1, std::memory_order_relaxed);
}

void VirtioSignals::acknowledge(std::uint32_t bits) {
  const std::lock_guard lock(mutex_);
  if (state_.interrupt_status == 0) return;
  state_.interrupt_status &= ~bits;
  if (state_.interrupt_status == 0) line_.set(false);
}

void VirtioSignals::raise(std::uint32_t bits) {
  const bool low = state_.interrupt_status == 0;
  state_.interrupt_status |= bits;
  if (low) line_.set(true);  // a driver acknowledges first and looks at the rings after, so one edge is enough
}

void VirtioSignals::reset() {
  const std::lock_guard lock(mutex_);
  if (state_.interrupt_status != 0) line_.set(false);
  state_.interrupt_status = 0;
  state_.needs_reset = false;
  needs_reset_.store(false, std::memory_order_release);
}

VirtioSignals::State VirtioSignals::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

void VirtioSignals::load(const State& state) {
  const std::lock_guard lock(mutex_);
  state_ = state;
  needs_reset_.store(state.needs_reset, std::memory_order_release);
  line_.set(state_.interrupt_status != 0);
}

}  // namespace fvmm::devices
