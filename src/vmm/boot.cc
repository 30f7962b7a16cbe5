#include "vmm/boot.h"

#include <elf.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "base/file.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint64_t kStartInfoAddress = 0x6000;
constexpr std::uint64_t kModuleListAddress = 0x6100;
constexpr std::uint64_t kMemoryMapAddress = 0x7000;
constexpr std::uint64_t kCmdlineAddress = 0x8000;
constexpr std::uint64_t kLowReservedStart = 0x9FC00;  // EBDA and the legacy video and ROM area up to 1 MiB
constexpr std::uint64_t kLowReservedEnd = 0x100000;
constexpr std::uint64_t kKernelBytesMax = 512 * kMiB;
constexpr std::uint64_t kInitrdBytesMax = 2 * kGiB;
constexpr std::uint32_t kProgramHeadersMax = 128;
constexpr std::uint32_t kStartMagic = 0x336ec578;
constexpr std::uint32_t kNotePhys32Entry = 18;

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
enum MemoryType : std::uint32_t { kRam = 1, kReserved = 2 };

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

template <class T>
std::optional<T> peek(std::span<const std::byte> file, std::uint64_t offset) {
  if (offset > file.size() || file.size() - offset < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, file.data() + offset, sizeof value);
  return value;
}

Error bad_kernel(const std::string& path, std::string_view why) {
  return {Errc::kInvalidArgument, fmt::format("kernel {}: {}", path, why)};
}

// A PT_NOTE segment is a list of {name size, descriptor size, type}, name and descriptor padded to 4 bytes.
std::optional<std::uint32_t> find_pvh_entry(std::span<const std::byte> notes) {
  std::uint64_t at = 0;
  while (const auto note = peek<Elf64_Nhdr>(notes, at)) {
    const std::uint64_t name_at = at + sizeof(Elf64_Nhdr);
    const std::uint64_t data_at = name_at + (std::uint64_t{note->n_namesz} + 3) / 4 * 4;
    if (note->n_type == kNotePhys32Entry && note->n_namesz == 4 && note->n_descsz >= 4) {
      const auto name = peek<std::array<char, 4>>(notes, name_at);
      const auto entry = peek<std::uint32_t>(notes, data_at);
      if (name && entry && std::memcmp(name->data(), "Xen", 4) == 0) return entry;
    }
    at = data_at + (std::uint64_t{note->n_descsz} + 3) / 4 * 4;
  }
  return std::nullopt;
}

struct LoadedKernel {
  std::uint32_t entry;
  std::uint64_t end;  // first byte after the image
};

Status load_segment(memory::GuestMemory& memory, std::span<const std::byte> file, const Elf64_Phdr& segment) {
  if (segment.p_filesz > segment.p_memsz || segment.p_offset > file.size() ||
      file.size() - segment.p_offset < segment.p_filesz) {
    return Error(Errc::kInvalidArgument, "a segment lies past the end of the file (cut short?)");
  }
  // Fresh RAM is zero, so the part of the segment that is not in the file needs no write, only the check.
  if (!memory.layout().ram_offset(segment.p_paddr, segment.p_memsz)) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("segment [{:#x}, {:#x}) is outside the guest's RAM; give the VM more --memory",
                             segment.p_paddr, segment.p_paddr + segment.p_memsz));
  }
  if (segment.p_paddr < kLowReservedEnd) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("segment at {:#x} is below 1 MiB, where the boot data lies", segment.p_paddr));
  }
  return memory.write(segment.p_paddr, file.subspan(segment.p_offset, segment.p_filesz));
}

Result<LoadedKernel> load_kernel(memory::GuestMemory& memory, const std::string& path) {
  const std::string content = FVMM_TRY(read_file(path, kKernelBytesMax), "kernel");
  const auto file = as_bytes(content);
  const auto header = peek<Elf64_Ehdr>(file, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) {
    return bad_kernel(path, "not an ELF file; give an uncompressed vmlinux");
  }
  if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_machine != EM_X86_64) {
    return bad_kernel(path, "not an ELF file for x86-64");
  }
  if (header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum > kProgramHeadersMax) {
    return bad_kernel(path, "bad program headers");
  }
  std::optional<std::uint32_t> entry;
  std::uint64_t end = 0;
  std::vector<Elf64_Phdr> loaded;
  for (unsigned i = 0; i < header->e_phnum; ++i) {
    const auto segment = peek<Elf64_Phdr>(file, header->e_phoff + std::uint64_t{i} * sizeof(Elf64_Phdr));
    if (!segment) return bad_kernel(path, "program headers past the end of the file (cut short?)");
    if (segment->p_type == PT_LOAD && segment->p_memsz != 0) {
      FVMM_TRY(load_segment(memory, file, *segment), "kernel " + path);
      end = std::max(end, segment->p_paddr + segment->p_memsz);
      loaded.push_back(*segment);
    } else if (segment->p_type == PT_NOTE && !entry && segment->p_offset <= file.size()) {
      entry =
          find_pvh_entry(file.subspan(segment->p_offset, std::min(segment->p_filesz, file.size() - segment->p_offset)));
    }
  }
  if (!entry) return bad_kernel(path, "no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY); build Linux with CONFIG_PVH=y");
  const bool inside = std::any_of(loaded.begin(), loaded.end(), [&](const Elf64_Phdr& segment) {
    return *entry >= segment.p_paddr && *entry - segment.p_paddr < segment.p_memsz;
  });
  if (!inside) return bad_kernel(path, fmt::format("PVH entry {:#x} is outside its segments", *entry));
  return LoadedKernel{.entry = *entry, .end = end};
}

// As high as possible below the hole, where no kernel decompresses or grows.
Result<ModuleEntry> load_initrd(memory::GuestMemory& memory, const std::string& path, std::uint64_t kernel_end) {
  const std::string content = FVMM_TRY(read_file(path, kInitrdBytesMax), "initrd");
  if (content.empty()) return Error(Errc::kInvalidArgument, fmt::format("initrd {} is empty", path));
  const std::uint64_t top = memory.layout().slot(0).bytes;
  const std::uint64_t size = (content.size() + kPageBytes - 1) / kPageBytes * kPageBytes;
  if (size > top || top - size < kernel_end) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("initrd {} of {} does not fit between the kernel and {}; give the VM more --memory", path,
                             format_bytes(content.size()), format_bytes(top)));
  }
  FVMM_TRY(memory.write(top - size, as_bytes(content)), "initrd " + path);
  return ModuleEntry{.paddr = top - size, .size = content.size(), .cmdline_paddr = 0, .reserved = 0};
}

std::vector<MemoryMapEntry> memory_map(const memory::Layout& layout) {
  std::vector<MemoryMapEntry> map;
  map.push_back({0, kLowReservedStart, kRam, 0});
  map.push_back({kLowReservedStart, kLowReservedEnd - kLowReservedStart, kReserved, 0});
  map.push_back({kLowReservedEnd, layout.slot(0).bytes - kLowReservedEnd, kRam, 0});
  for (unsigned i = 1; i < layout.slot_count(); ++i) {
    map.push_back({layout.slot(i).guest_address, layout.slot(i).bytes, kRam, 0});
  }
  return map;
}

}  // namespace

Result<BootEntry> load_pvh(memory::GuestMemory& memory, const BootRequest& request) {
  if (request.cmdline.size() > kCmdlineBytesMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("command line of {} bytes, limit {}", request.cmdline.size(), kCmdlineBytesMax));
  }
  const LoadedKernel kernel = FVMM_TRY(load_kernel(memory, request.kernel));
  StartInfo info{};
  info.magic = kStartMagic;
  info.version = 1;
  if (!request.initrd.empty()) {
    const ModuleEntry module = FVMM_TRY(load_initrd(memory, request.initrd, kernel.end));
    FVMM_TRY(memory.write(kModuleListAddress, bytes_of(module)));
    info.nr_modules = 1;
    info.modlist_paddr = kModuleListAddress;
  }
  const auto map = memory_map(memory.layout());
  FVMM_TRY(memory.write(kMemoryMapAddress, std::as_bytes(std::span(map))));
  info.memmap_paddr = kMemoryMapAddress;
  info.memmap_entries = static_cast<std::uint32_t>(map.size());
  std::string cmdline = request.cmdline;
  cmdline.push_back('\0');
  FVMM_TRY(memory.write(kCmdlineAddress, as_bytes(cmdline)));
  info.cmdline_paddr = kCmdlineAddress;
  FVMM_TRY(memory.write(kStartInfoAddress, bytes_of(info)));
  return BootEntry{.entry = kernel.entry, .start_info = static_cast<std::uint32_t>(kStartInfoAddress)};
}

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

}  // namespace fvmm::vmm
