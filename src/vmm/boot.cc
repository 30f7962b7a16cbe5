#include "vmm/boot.h"

#include <fmt/format.h>

#include "base/file.h"
#include "vmm/acpi.h"
#include "vmm/boot_data.h"
#include "vmm/elf_kernel.h"
#include "vmm/unpack.h"

namespace fvmm::vmm {
namespace {

/// In every vmlinux (init/version-timestamp.c). Other ELF programs would be entered in a state they do not expect.
constexpr std::string_view kLinuxBanner = "Linux version ";

constexpr std::uint64_t kStartInfoAddress = 0x6000;
constexpr std::uint64_t kModuleListAddress = 0x6100;
constexpr std::uint64_t kMemoryMapAddress = 0x7000;
constexpr std::uint64_t kInitrdBytesMax = 2 * kGiB;
constexpr std::uint32_t kStartMagic = 0x336ec578;

struct StartInfo {  // hvm_start_info, version 1
  std::uint32_t magic, version, flags, nr_modules;
  std::uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
  std::uint32_t memmap_entries, reserved;
};
static_assert(sizeof(StartInfo) == 56);

struct ModuleEntry {
  std::uint64_t paddr, size, cmdline_paddr, reserved;
};

struct MemoryMapEntry {
  std::uint64_t addr, size;
  std::uint32_t type, reserved;
};

Status check_cmdline(const std::string& cmdline, std::size_t bytes_max) {
  if (cmdline.size() <= bytes_max) return {};
  return Error(Errc::kInvalidArgument, fmt::format("command line of {} bytes, limit {}", cmdline.size(), bytes_max));
}

Result<BootEntry> finish_pvh(memory::GuestMemory& memory, const BootRequest& request, const ElfKernel& kernel) {
  const LoadedInitrd initrd = FVMM_TRY(load_initrd(memory, request.initrd, kernel.end, memory.layout().slot(0).bytes));
  StartInfo info{};
  info.magic = kStartMagic;
  info.version = 1;
  if (initrd.bytes != 0) {
    const ModuleEntry module{.paddr = initrd.address, .size = initrd.bytes, .cmdline_paddr = 0, .reserved = 0};
    FVMM_TRY(memory.write(kModuleListAddress, bytes_of(module)));
    info.nr_modules = 1;
    info.modlist_paddr = kModuleListAddress;
  }
  std::vector<MemoryMapEntry> map;
  for (const MemoryRange& range : memory_ranges(memory.layout())) {
    map.push_back({range.address, range.bytes, range.type, 0});
  }
  FVMM_TRY(memory.write(kMemoryMapAddress, std::as_bytes(std::span(map))));
  info.memmap_paddr = kMemoryMapAddress;
  info.memmap_entries = static_cast<std::uint32_t>(map.size());
  FVMM_TRY(write_cmdline(memory, request.cmdline));
  info.cmdline_paddr = kCmdlineAddress;
  if (request.acpi_generation) info.rsdp_paddr = kAcpiAddress;
  FVMM_TRY(memory.write(kStartInfoAddress, bytes_of(info)));
  return BootEntry{.protocol = BootProtocol::kPvh,
                   .entry = *kernel.pvh_entry,
                   .start_info = static_cast<std::uint32_t>(kStartInfoAddress)};
}

Result<BootEntry> finish_linux64(memory::GuestMemory& memory, const BootRequest& request, const ElfKernel& kernel,
                                 std::span<const std::byte> setup, std::uint64_t initrd_top) {
  const LoadedInitrd initrd = FVMM_TRY(load_initrd(memory, request.initrd, kernel.end, initrd_top));
  FVMM_TRY(write_cmdline(memory, request.cmdline));
  const std::uint32_t params =
      FVMM_TRY(write_linux_boot_data(memory, setup, initrd, request.cmdline.size()), "boot_params");
  return BootEntry{.protocol = BootProtocol::kLinux64, .entry = kernel.entry, .start_info = params};
}

Result<BootEntry> load_bzimage(memory::GuestMemory& memory, const BootRequest& request,
                               std::span<const std::byte> file) {
  const BzImage image = FVMM_TRY(parse_bzimage(file), "kernel " + request.kernel);
  FVMM_TRY(check_cmdline(request.cmdline, std::min(image.cmdline_bytes_max, kCmdlineBytesMax)));
  const std::string vmlinux = FVMM_TRY(unpack(image.payload, kKernelBytesMax), "kernel " + request.kernel);
  ElfKernel kernel = FVMM_TRY(load_elf(memory, as_bytes(vmlinux), request.kernel));
  if (kernel.pvh_entry) return finish_pvh(memory, request, kernel);
  return finish_linux64(memory, request, kernel, image.setup, image.initrd_address_max + 1);
}

}  // namespace

std::vector<MemoryRange> memory_ranges(const memory::Layout& layout) {
  std::vector<MemoryRange> map;
  map.push_back({0, kLowReservedStart, kRam});
  map.push_back({kLowReservedStart, kLowReservedEnd - kLowReservedStart, kReserved});
  map.push_back({kLowReservedEnd, layout.slot(0).bytes - kLowReservedEnd, kRam});
  for (unsigned i = 1; i < layout.slot_count(); ++i) {
    map.push_back({layout.slot(i).guest_address, layout.slot(i).bytes, kRam});
  }
  return map;
}

Result<LoadedInitrd> load_initrd(memory::GuestMemory& memory, const std::string& path, std::uint64_t kernel_end,
                                 std::uint64_t top) {
  if (path.empty()) return LoadedInitrd{};
  const std::string content = FVMM_TRY(read_file(path, kInitrdBytesMax), "initrd");
  if (content.empty()) return Error(Errc::kInvalidArgument, fmt::format("initrd {} is empty", path));
  top = std::min(top, memory.layout().slot(0).bytes) / kPageBytes * kPageBytes;
  const std::uint64_t size = (content.size() + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (size > top || top - size < kernel_end) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("initrd {} of {} does not fit between the kernel and {}; give the VM more --memory", path,
                             format_bytes(content.size()), format_bytes(top)));
  }
  FVMM_TRY(memory.write(top - size, as_bytes(content)), "initrd " + path);
  return LoadedInitrd{.address = top - size, .bytes = content.size()};
}

Status write_cmdline(memory::GuestMemory& memory, const std::string& cmdline) {
  std::string text = cmdline;
  text.push_back('\0');
  return memory.write(kCmdlineAddress, as_bytes(text));
}

Result<BootEntry> load_kernel(memory::GuestMemory& memory, const BootRequest& request) {
  FVMM_TRY(check_cmdline(request.cmdline, kCmdlineBytesMax));
  const std::string content = FVMM_TRY(read_file(request.kernel, kKernelBytesMax), "kernel");
  const auto file = as_bytes(content);
  if (is_bzimage(file)) return load_bzimage(memory, request, file);
  if (!is_elf(file)) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("kernel {}: not an ELF file (vmlinux) and not a bzImage", request.kernel));
  }
  const ElfKernel kernel = FVMM_TRY(load_elf(memory, file, request.kernel));
  if (kernel.pvh_entry) return finish_pvh(memory, request, kernel);
  if (content.find(kLinuxBanner) == std::string::npos) {
    return Error(
        Errc::kInvalidArgument,
        fmt::format(
            "kernel {}: an ELF file without a PVH note (XEN_ELFNOTE_PHYS32_ENTRY), and no Linux kernel, which could "
            "be entered without one; build it with CONFIG_PVH=y, or add the note",
            request.kernel));
  }
  return finish_linux64(memory, request, kernel, {}, memory.layout().slot(0).bytes);
}

namespace {

void set_pvh_registers(const BootEntry& entry, kvm_sregs& sregs, kvm_regs& regs) {
  kvm_segment flat{};
  flat.limit = 0xFFFFFFFF;
  flat.present = 1;
  flat.s = 1;
  flat.db = 1;
  flat.g = 1;
  flat.type = 3;  // data, read/write, accessed
  flat.selector = 0x10;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
  flat.type = 11;  // code, execute/read, accessed
  flat.selector = 0x08;
  sregs.cs = flat;
  kvm_segment task{};
  task.limit = 0x67;
  task.present = 1;
  task.type = 11;  // busy 32-bit TSS
  task.selector = 0x18;
  sregs.tr = task;
  sregs.cr0 = 0x11;  // PE, ET
  sregs.cr4 = 0;
  sregs.efer = 0;
  regs = {};
  regs.rflags = 0x2;
  regs.rip = entry.entry;
  regs.rbx = entry.start_info;
}

}  // namespace

void set_boot_registers(const BootEntry& entry, kvm_sregs& sregs, kvm_regs& regs) {
  if (entry.protocol == BootProtocol::kPvh) {
    set_pvh_registers(entry, sregs, regs);
  } else {
    set_linux64_registers(entry, sregs, regs);
  }
}

}  // namespace fvmm::vmm
