// What both boot protocols share. Internal to boot.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmm/boot.h"

namespace fvmm::vmm {

inline constexpr std::uint64_t kCmdlineAddress = 0x8000;
inline constexpr std::uint64_t kLowReservedStart = 0x9FC00;  // EBDA and the legacy video and ROM area up to 1 MiB
inline constexpr std::uint64_t kLowReservedEnd = 0x100000;

enum MemoryType : std::uint32_t { kRam = 1, kReserved = 2 };
struct MemoryRange {
  std::uint64_t address, bytes;
  MemoryType type;
};
std::vector<MemoryRange> memory_ranges(const memory::Layout& layout);

/// Where the initramfs lies; 0 bytes: there is none.
struct LoadedInitrd {
  std::uint64_t address = 0, bytes = 0;
};

/// As high as possible below `top` and in the first slot, where no kernel decompresses or grows.
Result<LoadedInitrd> load_initrd(memory::GuestMemory& memory, const std::string& path, std::uint64_t kernel_end,
                                 std::uint64_t top);

Status write_cmdline(memory::GuestMemory& memory, const std::string& cmdline);

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

/// A bzImage's parts.
struct BzImage {
  std::span<const std::byte> setup;      // the setup header, as it goes into boot_params from 0x1F1 on
  std::span<const std::byte> payload;    // the compressed vmlinux
  std::uint64_t initrd_address_max = 0;  // highest address an initramfs may reach
  std::size_t cmdline_bytes_max = 0;
};

[[nodiscard]] bool is_bzimage(std::span<const std::byte> file);

/// kInvalidArgument with the reason: cut short, too old (before protocol 2.12), not 64-bit, fields that point outside.
/// Pure.
Result<BzImage> parse_bzimage(std::span<const std::byte> file);

/// boot_params, page tables and GDT; address of boot_params. `setup` as in BzImage, or empty.
Result<std::uint32_t> write_linux_boot_data(memory::GuestMemory& memory, std::span<const std::byte> setup,
                                            const LoadedInitrd& initrd, std::size_t cmdline_bytes);
void set_linux64_registers(const BootEntry& entry, kvm_sregs& sregs, kvm_regs& regs);

}  // namespace fvmm::vmm
