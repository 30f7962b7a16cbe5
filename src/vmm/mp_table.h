// The MP table: how a guest without ACPI learns of its CPUs, its IOAPIC and its interrupt lines (Intel MultiProcessor
// Specification 1.4).
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "memory/guest_memory.h"

namespace fvmm::vmm {

inline constexpr std::uint64_t kMpTableAddress = 0x9FC00;  // where the EBDA begins: one of the places to look (4.1)
inline constexpr std::size_t kMpTableBytesMax = 0x400;     // up to the video memory
inline constexpr unsigned kIoapicPins = 24;                // of KVM's IOAPIC

/// The floating pointer and the table behind it, for `vcpus` CPUs whose APIC ids count from 0. Pure. Interrupt N of the
/// ISA bus is IOAPIC pin N, for all 24 pins: that is how Linux finds the lines of virtio-mmio devices.
std::vector<std::byte> mp_table(unsigned vcpus);

/// Writes it to kMpTableAddress.
Status write_mp_table(memory::GuestMemory& memory, unsigned vcpus);

}  // namespace fvmm::vmm
