// PVH boot: ELF kernel, initramfs, command line and hvm_start_info into guest memory.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "memory/guest_memory.h"
#include "vmm/kvm_abi.h"

namespace fvmm::vmm {

inline constexpr std::size_t kCmdlineBytesMax = 4095;

/// What the first vCPU starts with.
struct BootEntry {
  std::uint32_t entry = 0;       // physical address, 32-bit protected mode, paging off
  std::uint32_t start_info = 0;  // goes into ebx
};

struct BootRequest {
  std::string kernel;   // path of an ELF64 x86-64 file with a PVH note (XEN_ELFNOTE_PHYS32_ENTRY)
  std::string initrd;   // path or empty
  std::string cmdline;  // at most kCmdlineBytesMax bytes
};

/// Loads everything. Errors name the file and what is wrong with it: kNotFound, kInvalidArgument (not an ELF, cut
/// short, no PVH note, outside RAM, command line too long), kResourceExhausted (does not fit). Source: Xen
/// docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h; ELF64.
Result<BootEntry> load_pvh(memory::GuestMemory& memory, const BootRequest& request);

/// Registers of the first vCPU at a PVH entry: flat 4 GiB segments, CR0.PE, everything else off.
void set_pvh_registers(const BootEntry& entry, kvm_sregs& sregs, kvm_regs& regs);

}  // namespace fvmm::vmm
