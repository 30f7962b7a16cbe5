// The virtio-mmio devices of one VM, each in a slot: a window of registers, an interrupt, a name. The slot is the order
// of adding, so the same configuration always gives the same machine. Owner: the Vm.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "devices/bus.h"
#include "devices/virtio_mmio.h"
#include "memory/layout.h"
#include "vmm/doorbells.h"
#include "vmm/irq.h"

namespace fvmm::vmm {

inline constexpr std::uint64_t kVirtioBase = 0xd0000000;  // slot n: n windows of kVirtioMmioBytes further
inline constexpr unsigned kVirtioGsiFirst = 5;            // slot n: GSI 5 + n
inline constexpr unsigned kVirtioSlotsMax = 18;           // GSI 23, the IOAPIC's last pin, tells of a new generation id
static_assert(kVirtioBase >= memory::kHoleStart &&
              kVirtioBase + kVirtioSlotsMax * devices::kVirtioMmioBytes < 0xfec00000);  // the IOAPIC

/// Where a slot's window lies, and its interrupt.
constexpr std::uint64_t virtio_address(std::size_t slot) {
  return kVirtioBase + slot * devices::kVirtioMmioBytes;
}
constexpr unsigned virtio_gsi(std::size_t slot) {
  return kVirtioGsiFirst + static_cast<unsigned>(slot);
}

class VirtioSlots {
 public:
  /// All of these outlive the slots.
  VirtioSlots(int vm_fd, devices::Bus& mmio, memory::GuestMemory& memory);

  /// Into the next slot; before the first resume(). kResourceExhausted when all are taken.
  Status add(std::unique_ptr<devices::VirtioDevice> device);

  /// After the vCPUs are parked. All or none: on an error every device goes on. Takes the bus lock.
  Status quiesce(const Deadline& deadline);
  /// Before the vCPUs run. Takes the bus lock.
  void resume();

  /// For Linux: " virtio_mmio.device=4K@0xd0000000:5" and so on; empty without devices.
  [[nodiscard]] std::string cmdline() const;
  [[nodiscard]] std::size_t size() const { return slots_.size(); }
  [[nodiscard]] devices::VirtioMmio& device(std::size_t slot) { return *slots_.at(slot).transport; }

 private:
  struct Slot {
    std::unique_ptr<KvmIrqLine> line;
    std::unique_ptr<devices::VirtioMmio> transport;
  };
  int vm_fd_;
  devices::Bus& mmio_;
  memory::GuestMemory& memory_;
  KvmDoorbells doorbells_;
  std::vector<Slot> slots_;
};

}  // namespace fvmm::vmm
