// Kernels of a few bytes, written by the test that boots them: a PVH ELF image around given machine code.
#pragma once

#include <elf.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace fvmm::test {

inline constexpr std::uint32_t kTinyKernelAddress = 0x100000;  // where it is loaded and entered, guest-physical

/// A 64-bit ELF image: one segment with the code, and the PVH entry note unless `pvh_note` is false.
inline std::string tiny_kernel(std::string_view code, bool pvh_note = true) {
  struct Image {
    Elf64_Ehdr header{};
    Elf64_Phdr load{};
    Elf64_Phdr note{};
    Elf64_Nhdr note_header{};
    char note_name[4]{'X', 'e', 'n', '\0'};
    std::uint64_t note_entry = kTinyKernelAddress;
  } image;
  std::memcpy(image.header.e_ident, ELFMAG, SELFMAG);
  image.header.e_ident[EI_CLASS] = ELFCLASS64;
  image.header.e_ident[EI_DATA] = ELFDATA2LSB;
  image.header.e_ident[EI_VERSION] = EV_CURRENT;
  image.header.e_type = ET_EXEC;
  image.header.e_machine = EM_X86_64;
  image.header.e_version = EV_CURRENT;
  image.header.e_entry = kTinyKernelAddress;
  image.header.e_ehsize = sizeof(Elf64_Ehdr);
  image.header.e_phoff = offsetof(Image, load);
  image.header.e_phentsize = sizeof(Elf64_Phdr);
  image.header.e_phnum = pvh_note ? 2 : 1;
  image.load.p_type = PT_LOAD;
  image.load.p_flags = PF_R | PF_X;
  image.load.p_offset = sizeof(Image);
  image.load.p_paddr = image.load.p_vaddr = kTinyKernelAddress;
  image.load.p_filesz = image.load.p_memsz = code.size();
  image.note.p_type = PT_NOTE;
  image.note.p_offset = offsetof(Image, note_header);
  image.note.p_filesz = sizeof(Image) - offsetof(Image, note_header);
  image.note_header.n_namesz = sizeof(image.note_name);
  image.note_header.n_descsz = sizeof(image.note_entry);
  image.note_header.n_type = 18;  // XEN_ELFNOTE_PHYS32_ENTRY
  std::string file(sizeof(Image), '\0');
  std::memcpy(file.data(), &image, sizeof(Image));
  return file.append(code);
}

/// Writes a file; its path as fvmmctl takes it.
inline std::string write_text(const std::filesystem::path& path, std::string_view content) {
  std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
  return path.string();
}

}  // namespace fvmm::test
