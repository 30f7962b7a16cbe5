// ELF64 kernels: their segments into guest memory, and where to enter them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "memory/guest_memory.h"

namespace fvmm::vmm {

inline constexpr std::uint64_t kKernelAddressMin = 0x100000;  // below it lie the boot data and what a PC has there

struct ElfKernel {
  std::optional<std::uint32_t> pvh_entry;  // of the note XEN_ELFNOTE_PHYS32_ENTRY; in a segment
  std::uint64_t entry = 0;                 // the header's; in a segment unless there is a note
  std::uint64_t end = 0;                   // first byte after the image
};

[[nodiscard]] bool is_elf(std::span<const std::byte> file);

/// Loads every segment. `name` is for errors: kInvalidArgument (not ELF64 for x86-64, cut short, below 1 MiB, no entry
/// in a segment), kResourceExhausted (outside guest RAM). Memory may have been written then. Thread: the owner's of
/// memory.
Result<ElfKernel> load_elf(memory::GuestMemory& memory, std::span<const std::byte> file, const std::string& name);

}  // namespace fvmm::vmm
