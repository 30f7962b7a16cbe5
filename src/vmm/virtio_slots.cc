#include "vmm/virtio_slots.h"

#include <fmt/format.h>

namespace fvmm::vmm {

VirtioSlots::VirtioSlots(int vm_fd, devices::Bus& mmio, memory::GuestMemory& memory)
    : vm_fd_(vm_fd), mmio_(mmio), memory_(memory), doorbells_(vm_fd) {}

Status VirtioSlots::add(std::unique_ptr<devices::VirtioDevice> device) {
  const std::size_t slot = slots_.size();
  if (slot == kVirtioSlotsMax) {
    return Error(Errc::kResourceExhausted, fmt::format("a VM has at most {} virtio devices", kVirtioSlotsMax));
  }
  Slot added;
  added.line = std::make_unique<KvmIrqLine>(vm_fd_, virtio_gsi(slot));
  added.transport = std::make_unique<devices::VirtioMmio>(
      fmt::format("virtio{}", slot),
      devices::VirtioMmio::Surroundings{
          .memory = memory_, .line = *added.line, .doorbells = &doorbells_, .address = virtio_address(slot)},
      std::move(device));
  mmio_.add(virtio_address(slot), devices::kVirtioMmioBytes, *added.transport);
  slots_.push_back(std::move(added));
  return {};
}

Status VirtioSlots::quiesce(const Deadline& deadline) {
  const auto guard = mmio_.lock();
  for (Slot& slot : slots_) {
    if (Status quiet = slot.transport->quiesce(deadline); !quiet) {
      for (Slot& other : slots_) other.transport->resume();
      return quiet;
    }
  }
  return {};
}

void VirtioSlots::resume() {
  const auto guard = mmio_.lock();
  for (Slot& slot : slots_) slot.transport->resume();
}

std::string VirtioSlots::cmdline() const {
  std::string text;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    text += fmt::format(" virtio_mmio.device=4K@{:#x}:{}", virtio_address(slot), virtio_gsi(slot));
  }
  return text;
}

}  // namespace fvmm::vmm
