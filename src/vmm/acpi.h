// ACPI tables for guests that ask for them: CPUs, interrupts, devices, and the generation id that a clone learns of its
// being one from. Hardware-reduced (no SCI, no PM registers). Source: ACPI 6.5; Microsoft "Virtual Machine Generation
// ID".
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "memory/guest_memory.h"

namespace fvmm::vmm {

inline constexpr std::uint64_t kAcpiAddress = 0xE0000;  // the RSDP, where a guest without a start info looks (5.2.5.1)
inline constexpr std::size_t kAcpiBytesMax = 0x10000;
inline constexpr std::uint64_t kGenerationIdAddress = 0xF0000;  // a page of its own, reserved
inline constexpr unsigned kGenerationGsi = 23;                  // of the generic event device; not at the PIC

struct AcpiMachine {
  unsigned vcpus = 1;
  unsigned virtio_devices = 0;  // in the first so many slots
};

/// All tables as they lie from kAcpiAddress on: RSDP, XSDT, FADT, MADT, DSDT. Pure.
std::vector<std::byte> acpi_tables(const AcpiMachine& machine);
/// DSDT alone: COM1, the virtio-mmio devices, VMGENID and the event device that tells of its change. Pure.
std::vector<std::uint8_t> acpi_dsdt(const AcpiMachine& machine);

/// Tables and generation id into guest memory, before the first instruction.
Status write_acpi(memory::GuestMemory& memory, const AcpiMachine& machine, const Id& generation);
/// The id alone, of a clone; the caller raises kGenerationGsi afterwards.
Status write_generation_id(memory::GuestMemory& memory, const Id& generation);

}  // namespace fvmm::vmm
