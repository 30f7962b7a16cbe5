// A kernel, its initramfs and its command line into guest memory, and the first vCPU's registers.
//
//   ELF with a PVH note        ─► PVH: 32-bit entry, hvm_start_info (boot.cc)
//   ELF without one (vmlinux)  ─► Linux's 64-bit entry, boot_params (linux_boot.cc)
//   bzImage                    ─► its vmlinux is unpacked on the host; then the same
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/id.h"
#include "base/result.h"
#include "memory/guest_memory.h"
#include "vmm/kvm_abi.h"

namespace fvmm::vmm {

inline constexpr std::size_t kCmdlineBytesMax = 4095;
inline constexpr std::uint64_t kKernelBytesMax = 512 * kMiB;  // of the file, and of what it unpacks to

enum class BootProtocol { kPvh, kLinux64 };

/// What the first vCPU starts with.
struct BootEntry {
  BootProtocol protocol = BootProtocol::kPvh;
  std::uint64_t entry = 0;       // physical address; PVH: 32-bit protected mode, paging off; else 64-bit, identity map
  std::uint32_t start_info = 0;  // hvm_start_info, in ebx; or boot_params, in rsi
};

struct BootRequest {
  std::string kernel;                   // path of a bzImage or of an ELF64 x86-64 file
  std::string initrd;                   // path or empty
  std::string cmdline;                  // at most kCmdlineBytesMax bytes
  std::optional<Id> acpi_generation{};  // with ACPI tables, and this generation id in them
};

/// Loads everything. Errors name the file and what is wrong with it: kNotFound, kInvalidArgument (neither ELF nor
/// bzImage, cut short, damaged, no entry, command line too long), kResourceExhausted (does not fit, or unpacks to more
/// than kKernelBytesMax). Source: Xen docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h; ELF64; Linux
/// Documentation/x86/boot.rst.
Result<BootEntry> load_kernel(memory::GuestMemory& memory, const BootRequest& request);

/// Registers of the first vCPU. PVH: flat 4 GiB segments, CR0.PE, everything else off. 64-bit: long mode, identity map
/// of 4 GiB, Linux's boot selectors.
void set_boot_registers(const BootEntry& entry, kvm_sregs& sregs, kvm_regs& regs);

}  // namespace fvmm::vmm
