#include "vmm/elf_kernel.h"

#include <elf.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

namespace fvmm::vmm {
namespace {

constexpr std::uint32_t kProgramHeadersMax = 128;
constexpr std::uint32_t kNotePhys32Entry = 18;

template <class T>
std::optional<T> peek(std::span<const std::byte> file, std::uint64_t offset) {
  if (offset > file.size() || file.size() - offset < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, file.data() + offset, sizeof value);
  return value;
}

Error bad_kernel(const std::string& name, std::string_view why) {
  return {Errc::kInvalidArgument, fmt::format("kernel {}: {}", name, why)};
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
  if (segment.p_paddr < kKernelAddressMin) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("segment at {:#x} is below 1 MiB, where the boot data lies", segment.p_paddr));
  }
  return memory.write(segment.p_paddr, file.subspan(segment.p_offset, segment.p_filesz));
}

Status check_header(const Elf64_Ehdr& header, const std::string& name) {
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64) {
    return bad_kernel(name, "not an ELF file for x86-64");
  }
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum > kProgramHeadersMax) {
    return bad_kernel(name, "bad program headers");
  }
  return {};
}

}  // namespace

bool is_elf(std::span<const std::byte> file) {
  return file.size() >= SELFMAG && std::memcmp(file.data(), ELFMAG, SELFMAG) == 0;
}

Result<ElfKernel> load_elf(memory::GuestMemory& memory, std::span<const std::byte> file, const std::string& name) {
  const auto header = peek<Elf64_Ehdr>(file, 0);
  if (!header || !is_elf(file)) return bad_kernel(name, "not an ELF file");
  FVMM_TRY(check_header(*header, name));
  ElfKernel kernel{.pvh_entry = std::nullopt, .entry = header->e_entry, .end = 0};
  std::vector<Elf64_Phdr> loaded;
  for (unsigned i = 0; i < header->e_phnum; ++i) {
    const auto segment = peek<Elf64_Phdr>(file, header->e_phoff + std::uint64_t{i} * sizeof(Elf64_Phdr));
    if (!segment) return bad_kernel(name, "program headers past the end of the file (cut short?)");
    if (segment->p_type == PT_LOAD && segment->p_memsz != 0) {
      FVMM_TRY(load_segment(memory, file, *segment), "kernel " + name);
      kernel.end = std::max(kernel.end, segment->p_paddr + segment->p_memsz);
      loaded.push_back(*segment);
    } else if (segment->p_type == PT_NOTE && !kernel.pvh_entry && segment->p_offset <= file.size()) {
      kernel.pvh_entry =
          find_pvh_entry(file.subspan(segment->p_offset, std::min(segment->p_filesz, file.size() - segment->p_offset)));
    }
  }
  const std::uint64_t entry = kernel.pvh_entry.value_or(kernel.entry);
  const bool inside = std::any_of(loaded.begin(), loaded.end(), [&](const Elf64_Phdr& segment) {
    return entry >= segment.p_paddr && entry - segment.p_paddr < segment.p_memsz;
  });
  if (!inside) {
    return bad_kernel(name, fmt::format("its {} {:#x} is outside its segments",
                                        kernel.pvh_entry ? "PVH entry" : "entry (it has no PVH note)", entry));
  }
  return kernel;
}

}  // namespace fvmm::vmm
