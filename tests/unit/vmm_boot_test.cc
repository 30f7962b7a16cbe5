// PVH loading into guest memory without KVM: what lands where, and every kind of file that is refused.
#include "vmm/boot.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <optional>

#include "support/elf_image.h"
#include "support/stored_template.h"

namespace fvmm::vmm {
namespace {

using test::ElfImage;
using test::ElfSegment;
using test::kernel_of;
using test::patch;
using test::pvh_note;

constexpr std::uint64_t kRam = 16 * kMiB;
constexpr std::size_t kPhdr = ElfImage::kFirstProgramHeader;

struct StartInfo {  // Xen public/arch-x86/hvm/start_info.h, version 1
  std::uint32_t magic, version, flags, nr_modules;
  std::uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
  std::uint32_t memmap_entries, reserved;
};
struct MapEntry {
  std::uint64_t addr, size;
  std::uint32_t type, reserved;
  bool operator==(const MapEntry&) const = default;
};
struct Module {
  std::uint64_t paddr, size, cmdline_paddr, reserved;
};

class LoadKernel : public ::testing::Test {
 protected:
  void SetUp() override { use_memory(kRam); }
  void use_memory(std::uint64_t bytes) {
    memory_ = memory::GuestMemory::reserve(bytes).value();
    ASSERT_TRUE(memory_->map_zero().ok());
  }
  std::string file(const std::string& name, std::string_view content) {
    const auto path = directory_.path() / name;
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }
  Result<BootEntry> load(const std::string& image, const std::string& cmdline = "", const std::string& initrd = "") {
    return load_kernel(*memory_, {.kernel = file("kernel", image), .initrd = initrd, .cmdline = cmdline});
  }
  /// The error's code when it is refused; the message must name the file.
  std::optional<Errc> refusal(const std::string& image) {
    const auto loaded = load(image);
    if (loaded) return std::nullopt;
    EXPECT_NE(loaded.error().message().find("kernel"), std::string::npos) << loaded.error().message();
    return loaded.error().code();
  }
  template <class T>
  T at(std::uint64_t address) {
    T value;
    EXPECT_TRUE(memory_->read(address, std::as_writable_bytes(std::span(&value, 1))).ok());
    return value;
  }
  std::string text(std::uint64_t address, std::size_t bytes) {
    std::string read(bytes, '?');
    EXPECT_TRUE(memory_->read(address, std::as_writable_bytes(std::span(read))).ok());
    return read;
  }
  std::vector<MapEntry> map_of(const BootEntry& entry) {
    const auto info = at<StartInfo>(entry.start_info);
    std::vector<MapEntry> map;
    for (std::uint32_t i = 0; i < info.memmap_entries; ++i) map.push_back(at<MapEntry>(info.memmap_paddr + 24 * i));
    return map;
  }

  testing::TempDir directory_;
  std::unique_ptr<memory::GuestMemory> memory_;
};

TEST_F(LoadKernel, PutsSegmentsWhereTheySay) {
  ElfImage image = kernel_of("first");
  image.segments.push_back({.address = 0x200000, .data = "second", .memory_bytes = 9000});
  const auto entry = load(image.build());
  ASSERT_TRUE(entry.ok()) << entry.error().message();
  EXPECT_EQ(entry->entry, 0x100000U);
  EXPECT_EQ(text(0x100000, 5), "first");
  EXPECT_EQ(text(0x200000, 8), std::string("second\0\0", 8));
}

TEST_F(LoadKernel, EntryMayLieAnywhereInASegmentAlsoPastItsFilePart) {
  ElfImage image{.segments = {{.address = 0x100000, .data = "code", .memory_bytes = 0x1000}},
                 .notes = pvh_note(0x100fff)};
  EXPECT_EQ(load(image.build())->entry, 0x100fffU);
  image.notes = pvh_note(0x101000);
  EXPECT_EQ(refusal(image.build()), Errc::kInvalidArgument);
}

TEST_F(LoadKernel, StartInfoDescribesCommandLineAndMap) {
  const auto entry = load(kernel_of("x").build(), "console=ttyS0 quiet");
  ASSERT_TRUE(entry.ok());
  const auto info = at<StartInfo>(entry->start_info);
  EXPECT_EQ(info.magic, 0x336ec578U);
  EXPECT_EQ(info.version, 1U);
  EXPECT_EQ(info.nr_modules, 0U);
  EXPECT_EQ(info.modlist_paddr, 0U);
  EXPECT_EQ(info.rsdp_paddr, 0U);
  EXPECT_EQ(text(info.cmdline_paddr, 20), std::string("console=ttyS0 quiet\0", 20));
}

TEST_F(LoadKernel, MapBelowTheHole) {
  const auto entry = load(kernel_of("x").build());
  ASSERT_TRUE(entry.ok());
  const std::vector<MapEntry> wanted = {
      {0, 0x9FC00, 1, 0}, {0x9FC00, 0x60400, 2, 0}, {0x100000, kRam - 0x100000, 1, 0}};
  EXPECT_EQ(map_of(*entry), wanted);
}

TEST_F(LoadKernel, MapEndsAtTheHoleAndGoesOnBehindIt) {
  use_memory(memory::kHoleStart);
  EXPECT_EQ(map_of(load(kernel_of("x").build()).value()).size(), 3U);
  use_memory(memory::kHoleStart + kPageBytes);
  const auto map = map_of(load(kernel_of("x").build()).value());
  ASSERT_EQ(map.size(), 4U);
  EXPECT_EQ(map[2], (MapEntry{0x100000, memory::kHoleStart - 0x100000, 1, 0}));
  EXPECT_EQ(map[3], (MapEntry{memory::kHoleEnd, kPageBytes, 1, 0}));
}

TEST_F(LoadKernel, CommandLineAtAndPastItsLimit) {
  const std::string longest(kCmdlineBytesMax, 'c');
  const auto entry = load(kernel_of("x").build(), longest);
  ASSERT_TRUE(entry.ok()) << entry.error().message();
  EXPECT_EQ(text(at<StartInfo>(entry->start_info).cmdline_paddr, kCmdlineBytesMax + 1), longest + '\0');
  EXPECT_EQ(load(kernel_of("x").build(), longest + "c").error().code(), Errc::kInvalidArgument);
}

TEST_F(LoadKernel, InitrdLiesAtTheTopOnAPage) {
  const std::string content(5000, 'i');
  const auto entry = load(kernel_of("x").build(), "", file("initrd", content));
  ASSERT_TRUE(entry.ok()) << entry.error().message();
  const auto info = at<StartInfo>(entry->start_info);
  ASSERT_EQ(info.nr_modules, 1U);
  const auto module = at<Module>(info.modlist_paddr);
  EXPECT_EQ(module.paddr, kRam - 2 * kPageBytes);
  EXPECT_EQ(module.size, content.size());
  EXPECT_EQ(text(module.paddr, content.size()), content);
}

TEST_F(LoadKernel, InitrdLiesBelowTheHole) {
  use_memory(memory::kHoleStart + 64 * kMiB);
  const auto entry = load(kernel_of("x").build(), "", file("initrd", "i"));
  ASSERT_TRUE(entry.ok());
  EXPECT_EQ(at<Module>(at<StartInfo>(entry->start_info).modlist_paddr).paddr, memory::kHoleStart - kPageBytes);
}

TEST_F(LoadKernel, InitrdUpToTheKernelsEndAndNoFurther) {
  const std::string kernel =
      ElfImage{.segments = {{.address = 0x100000, .data = "x", .memory_bytes = kMiB}}, .notes = pvh_note(0x100000)}
          .build();
  EXPECT_TRUE(load(kernel, "", file("fits", std::string(kRam - 2 * kMiB, 'i'))).ok());
  const auto larger = load(kernel, "", file("larger", std::string(kRam - 2 * kMiB + 1, 'i')));
  EXPECT_EQ(larger.error().code(), Errc::kResourceExhausted);
  const auto huge = load(kernel, "", file("huge", std::string(kRam + 1, 'i')));
  EXPECT_EQ(huge.error().code(), Errc::kResourceExhausted);
}

TEST_F(LoadKernel, InitrdThatIsEmptyOrMissing) {
  EXPECT_EQ(load(kernel_of("x").build(), "", file("empty", "")).error().code(), Errc::kInvalidArgument);
  EXPECT_EQ(load(kernel_of("x").build(), "", "/nonexistent").error().code(), Errc::kNotFound);
}

TEST_F(LoadKernel, KernelThatIsMissing) {
  EXPECT_EQ(load_kernel(*memory_, {.kernel = "/nonexistent", .initrd = "", .cmdline = ""}).error().code(),
            Errc::kNotFound);
}

TEST_F(LoadKernel, WhatIsNoElf64ForX86) {
  const std::string good = kernel_of("x").build();
  EXPECT_EQ(refusal(""), Errc::kInvalidArgument);
  EXPECT_EQ(refusal("\x7f"
                    "ELF"),
            Errc::kInvalidArgument);
  EXPECT_EQ(refusal(good.substr(0, sizeof(Elf64_Ehdr) - 1)), Errc::kInvalidArgument);
  EXPECT_EQ(refusal(std::string(4096, 'M')), Errc::kInvalidArgument);
  std::string image = good;
  image[EI_CLASS] = ELFCLASS32;
  EXPECT_EQ(refusal(image), Errc::kInvalidArgument);
  image = good;
  patch<Elf64_Half>(image, offsetof(Elf64_Ehdr, e_machine), EM_AARCH64);
  EXPECT_EQ(refusal(image), Errc::kInvalidArgument);
}

TEST_F(LoadKernel, ProgramHeadersThatAreWrong) {
  const std::string good = kernel_of("x").build();
  std::string image = good;
  patch<Elf64_Half>(image, offsetof(Elf64_Ehdr, e_phentsize), sizeof(Elf64_Phdr) - 1);
  EXPECT_EQ(refusal(image), Errc::kInvalidArgument);
  for (const Elf64_Half count : {Elf64_Half{129}, Elf64_Half{0xffff}}) {
    image = good;
    patch<Elf64_Half>(image, offsetof(Elf64_Ehdr, e_phnum), count);
    EXPECT_EQ(refusal(image), Errc::kInvalidArgument) << count;
  }
  for (const Elf64_Off offset : {Elf64_Off{good.size()}, ~Elf64_Off{0}, ~Elf64_Off{0} - sizeof(Elf64_Phdr)}) {
    image = good;
    patch<Elf64_Off>(image, offsetof(Elf64_Ehdr, e_phoff), offset);
    EXPECT_EQ(refusal(image), Errc::kInvalidArgument) << offset;
  }
  image = good;
  patch<Elf64_Half>(image, offsetof(Elf64_Ehdr, e_phnum), Elf64_Half{0});
  EXPECT_EQ(refusal(image), Errc::kInvalidArgument);
}

TEST_F(LoadKernel, AsManyProgramHeadersAsAllowed) {
  ElfImage image = kernel_of("x");
  while (image.segments.size() < 127) image.segments.push_back({.address = 0x200000, .data = "y", .memory_bytes = 0});
  EXPECT_EQ(refusal(image.build()), std::nullopt);
  image.segments.push_back({.address = 0x200000, .data = "y", .memory_bytes = 0});
  EXPECT_EQ(refusal(image.build()), Errc::kInvalidArgument);
}

TEST_F(LoadKernel, SegmentsThatEndPastTheFile) {
  const std::string good = kernel_of(std::string(100, 'c')).build();
  const auto with = [&](std::size_t field, std::uint64_t value) {
    std::string image = good;
    patch<std::uint64_t>(image, kPhdr + field, value);
    return refusal(image);
  };
  EXPECT_EQ(with(offsetof(Elf64_Phdr, p_offset), good.size() - 99), Errc::kInvalidArgument);
  EXPECT_EQ(with(offsetof(Elf64_Phdr, p_offset), ~std::uint64_t{0}), Errc::kInvalidArgument);
  EXPECT_EQ(with(offsetof(Elf64_Phdr, p_filesz), ~std::uint64_t{0}), Errc::kInvalidArgument);
  EXPECT_EQ(with(offsetof(Elf64_Phdr, p_memsz), 99), Errc::kInvalidArgument) << "more in the file than in memory";
}

TEST_F(LoadKernel, SegmentsOverTheBootData) {
  EXPECT_EQ(
      refusal(ElfImage{.segments = {{.address = 0x6000, .data = "x", .memory_bytes = 0}}, .notes = pvh_note(0x6000)}
                  .build()),
      Errc::kInvalidArgument);
  EXPECT_EQ(
      refusal(ElfImage{.segments = {{.address = 0xfffff, .data = "x", .memory_bytes = 0}}, .notes = pvh_note(0xfffff)}
                  .build()),
      Errc::kInvalidArgument);
}

TEST_F(LoadKernel, SegmentsOutsideRam) {
  const auto segment_at = [&](std::uint64_t address, std::uint64_t bytes) {
    ElfImage image = kernel_of("x");
    image.segments.push_back({.address = address, .data = "y", .memory_bytes = bytes});
    return refusal(image.build());
  };
  EXPECT_EQ(segment_at(kRam - 1, 1), std::nullopt);
  EXPECT_EQ(segment_at(kRam - 1, 2), Errc::kResourceExhausted);
  EXPECT_EQ(segment_at(kRam, 1), Errc::kResourceExhausted);
  EXPECT_EQ(segment_at(0x200000, ~std::uint64_t{0}), Errc::kResourceExhausted);
  EXPECT_EQ(segment_at(~std::uint64_t{0}, 1), Errc::kResourceExhausted);
}

TEST_F(LoadKernel, NotesThatHoldNoPvhEntry) {
  const std::string xen("Xen\0", 4);
  const std::string entry("\0\0\x10\0", 4);
  const auto with_notes = [&](const std::string& notes) {
    ElfImage image = kernel_of("x");
    image.notes = notes;
    return refusal(image.build());
  };
  EXPECT_EQ(with_notes(""), Errc::kInvalidArgument) << "no notes at all";
  EXPECT_EQ(with_notes(test::elf_note(xen, 17, entry)), Errc::kInvalidArgument) << "another type";
  EXPECT_EQ(with_notes(test::elf_note(std::string("Xem\0", 4), 18, entry)), Errc::kInvalidArgument) << "another name";
  EXPECT_EQ(with_notes(test::elf_note(xen, 18, entry.substr(0, 3))), Errc::kInvalidArgument) << "a short descriptor";
  EXPECT_EQ(with_notes(pvh_note(0x100000).substr(0, 16)), Errc::kInvalidArgument) << "cut before the descriptor";
  EXPECT_EQ(with_notes(pvh_note(0x100000).substr(0, 11)), Errc::kInvalidArgument) << "cut in the header";
  EXPECT_EQ(with_notes(std::string(4096, '\0')), Errc::kInvalidArgument) << "notes of size zero";
  EXPECT_EQ(with_notes(std::string(4096, '\xff')), Errc::kInvalidArgument) << "notes of 4 GiB each";
}

TEST_F(LoadKernel, PvhNoteIsFoundBehindOthersAndWithFourBytes) {
  ElfImage image = kernel_of("x");
  image.notes = test::elf_note(std::string("GNU\0", 4), 3, "abcde") + test::elf_note("", 0, "") +
                test::elf_note(std::string("Xen\0", 4), 18, std::string("\0\0\x10\0", 4));
  EXPECT_EQ(load(image.build())->entry, 0x100000U);
}

TEST_F(LoadKernel, EntryOutsideTheSegments) {
  ElfImage image = kernel_of("x");
  image.segments.push_back({.address = 0x300000, .data = "y", .memory_bytes = 0});
  for (const std::uint64_t entry : {0ULL, 0xfffffULL, 0x100001ULL, 0x200000ULL, 0x300001ULL, 0xffffffffULL}) {
    image.notes = pvh_note(entry);
    EXPECT_EQ(refusal(image.build()), Errc::kInvalidArgument) << entry;
  }
}

TEST_F(LoadKernel, SegmentsAreMarkedAsWritten) {
  ASSERT_TRUE(load(kernel_of("x").build()).ok());
  memory::Bitmap marked(memory_->layout().pages());
  memory_->device_marks().drain_into(marked);
  for (const memory::PageIndex page : {0x6ULL, 0x7ULL, 0x8ULL, 0x100ULL}) EXPECT_TRUE(marked.test(page)) << page;
}

TEST(PvhRegisters, FlatProtectedModeWithoutPaging) {
  kvm_sregs sregs{};
  kvm_regs regs{};
  regs.rax = 7;
  set_boot_registers({.entry = 0x123456, .start_info = 0x6000}, sregs, regs);
  EXPECT_EQ(regs.rip, 0x123456U);
  EXPECT_EQ(regs.rbx, 0x6000U);
  EXPECT_EQ(regs.rax, 0U);
  EXPECT_EQ(regs.rflags, 2U);
  EXPECT_EQ(sregs.cr0, 0x11U);
  EXPECT_EQ(sregs.cr4, 0U);
  EXPECT_EQ(sregs.efer, 0U);
  EXPECT_EQ(sregs.cs.base, 0U);
  EXPECT_EQ(sregs.cs.limit, 0xFFFFFFFFU);
  EXPECT_EQ(sregs.cs.db, 1);
  EXPECT_EQ(sregs.tr.limit, 0x67U);
}

}  // namespace
}  // namespace fvmm::vmm
