// ELF kernels written by the test that loads them: segments and notes as given, and machine code a few bytes long.
#pragma once

#include <elf.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace fvmm::test {

/// One ELF note: header, name, descriptor, each padded to 4 bytes.
inline std::string elf_note(std::string_view name, std::uint32_t type, std::string_view descriptor) {
  const auto padded = [](std::string text) { return text.append((4 - text.size() % 4) % 4, '\0'); };
  const Elf64_Nhdr header{.n_namesz = static_cast<std::uint32_t>(name.size()),
                          .n_descsz = static_cast<std::uint32_t>(descriptor.size()),
                          .n_type = type};
  return std::string(reinterpret_cast<const char*>(&header), sizeof header) + padded(std::string(name)) +
         padded(std::string(descriptor));
}

/// XEN_ELFNOTE_PHYS32_ENTRY, 8 bytes as Linux writes it.
inline std::string pvh_note(std::uint64_t entry) {
  return elf_note(std::string_view("Xen\0", 4), 18, {reinterpret_cast<const char*>(&entry), sizeof entry});
}

struct ElfSegment {
  std::uint64_t address = 0x100000;  // guest-physical
  std::string data;
  std::uint64_t memory_bytes = 0;  // 0: as long as the data
};

/// What goes into the file; a test spoils what it wants to see refused, here or in the bytes.
struct ElfImage {
  std::vector<ElfSegment> segments;
  std::string notes;  // of the PT_NOTE segment; empty: there is none

  /// The headers lie at the front: Elf64_Ehdr, then one Elf64_Phdr a segment, the note's last.
  static constexpr std::size_t kFirstProgramHeader = sizeof(Elf64_Ehdr);

  [[nodiscard]] std::string build() const {
    const std::size_t count = segments.size() + (notes.empty() ? 0 : 1);
    Elf64_Ehdr header{};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_ident[EI_VERSION] = EV_CURRENT;
    header.e_type = ET_EXEC;
    header.e_machine = EM_X86_64;
    header.e_version = EV_CURRENT;
    header.e_ehsize = sizeof(Elf64_Ehdr);
    header.e_phoff = kFirstProgramHeader;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = static_cast<Elf64_Half>(count);
    std::string headers(reinterpret_cast<const char*>(&header), sizeof header);
    std::string content;
    const std::size_t content_at = kFirstProgramHeader + count * sizeof(Elf64_Phdr);
    const auto add = [&](std::uint32_t type, std::uint64_t address, const std::string& data, std::uint64_t memory) {
      Elf64_Phdr segment{};
      segment.p_type = type;
      segment.p_flags = PF_R | PF_W | PF_X;
      segment.p_offset = content_at + content.size();
      segment.p_paddr = segment.p_vaddr = address;
      segment.p_filesz = data.size();
      segment.p_memsz = memory;
      headers.append(reinterpret_cast<const char*>(&segment), sizeof segment);
      content += data;
    };
    for (const ElfSegment& segment : segments) {
      add(PT_LOAD, segment.address, segment.data,
          segment.memory_bytes == 0 ? segment.data.size() : segment.memory_bytes);
    }
    if (!notes.empty()) add(PT_NOTE, 0, notes, notes.size());
    return headers + content;
  }
};

/// A kernel of one segment at 1 MiB that begins with its entry.
inline ElfImage kernel_of(const std::string& code) {
  return {.segments = {{.address = 0x100000, .data = code, .memory_bytes = 0}}, .notes = pvh_note(0x100000)};
}

/// Overwrites bytes of a built image.
template <class T>
void patch(std::string& image, std::size_t offset, const T& value) {
  std::memcpy(image.data() + offset, &value, sizeof value);
}

/// x86 code for the PVH entry's mode: 32-bit, flat, no paging, no stack, no interrupts.
class Code {
 public:
  Code& bytes(std::initializer_list<int> values) {
    for (const int value : values) code_.push_back(static_cast<char>(value));
    return *this;
  }
  Code& word(std::uint32_t value) {
    code_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Code& out(std::uint16_t port, char value) {  // mov dx, port; mov al, value; out dx, al
    return bytes({0x66, 0xba, port & 0xff, port >> 8, 0xb0, value, 0xee});
  }
  Code& say(char value) { return out(0x3f8, value); }
  Code& store(std::uint32_t address, std::uint32_t value) {  // mov dword [address], value
    return bytes({0xc7, 0x05}).word(address).word(value);
  }
  Code& halt() { return bytes({0xf4, 0xeb, 0xfd}); }  // hlt; jmp to the hlt
  [[nodiscard]] std::size_t size() const { return code_.size(); }
  [[nodiscard]] const std::string& text() const { return code_; }

 private:
  std::string code_;
};

}  // namespace fvmm::test
