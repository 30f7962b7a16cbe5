// Linux's 64-bit boot protocol without KVM: bzImages and bare vmlinux files into guest memory, and what is refused.
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "support/elf_image.h"
#include "support/packed.h"
#include "support/stored_template.h"
#include "vmm/boot_data.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint64_t kRam = 16 * kMiB;
constexpr std::uint32_t kHdrs = 0x53726448;

/// A kernel without a PVH note, entered at the ELF header's address.
std::string vmlinux(const std::string& code = "startup_64", std::uint64_t entry = 0x200000,
                    const std::string& banner = "Linux version 6.1") {
  test::ElfImage image{.segments = {{.address = 0x200000, .data = code + banner, .memory_bytes = 0}}, .notes = ""};
  std::string file = image.build();
  test::patch<std::uint64_t>(file, offsetof(Elf64_Ehdr, e_entry), entry);
  return file;
}

class LinuxBoot : public ::testing::Test {
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
  /// The reason, which names the file; empty when it is loaded.
  std::string refusal(const std::string& image, Errc code = Errc::kInvalidArgument) {
    const auto loaded = load(image);
    if (loaded) return "";
    EXPECT_EQ(loaded.error().code(), code) << loaded.error().message();
    EXPECT_NE(loaded.error().message().find(directory_.path().string()), std::string::npos);
    return loaded.error().message();
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

  testing::TempDir directory_;
  std::unique_ptr<memory::GuestMemory> memory_;
};

TEST_F(LinuxBoot, AnElfFileWithoutNoteThatIsNoLinuxIsRefusedWithTheFix) {
  const std::string why = refusal(vmlinux("startup_64", 0x200000, "another system"));
  EXPECT_NE(why.find("CONFIG_PVH"), std::string::npos) << why;
}

TEST_F(LinuxBoot, VmlinuxWithoutPvhNoteIsEnteredAtItsHeadersAddress) {
  const auto entry = load(vmlinux(), "quiet");
  ASSERT_TRUE(entry.ok()) << entry.error().message();
  EXPECT_EQ(entry->protocol, BootProtocol::kLinux64);
  EXPECT_EQ(entry->entry, 0x200000U);
  EXPECT_EQ(text(0x200000, 10), "startup_64");
  const std::uint64_t params = entry->start_info;
  EXPECT_EQ(at<std::uint16_t>(params + 0x1FE), 0xAA55);
  EXPECT_EQ(at<std::uint32_t>(params + 0x202), kHdrs);
  EXPECT_EQ(at<std::uint8_t>(params + 0x210), 0xFF) << "type_of_loader";
  EXPECT_EQ(text(at<std::uint32_t>(params + 0x228), 6), std::string("quiet\0", 6));
  EXPECT_EQ(at<std::uint32_t>(params + 0x238), 5U);
  EXPECT_EQ(at<std::uint32_t>(params + 0x21C), 0U) << "no initramfs";
}

TEST_F(LinuxBoot, MemoryMapBelowAndBehindTheHole) {
  use_memory(memory::kHoleStart + kPageBytes);
  const auto entry = load(vmlinux());
  ASSERT_TRUE(entry.ok());
  const std::uint64_t params = entry->start_info;
  ASSERT_EQ(at<std::uint8_t>(params + 0x1E8), 4);
  const std::uint64_t wanted[4][3] = {{0, 0x9FC00, 1},
                                      {0x9FC00, 0x60400, 2},
                                      {0x100000, memory::kHoleStart - 0x100000, 1},
                                      {memory::kHoleEnd, kPageBytes, 1}};
  for (std::uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(at<std::uint64_t>(params + 0x2D0 + 20 * i), wanted[i][0]) << i;
    EXPECT_EQ(at<std::uint64_t>(params + 0x2D8 + 20 * i), wanted[i][1]) << i;
    EXPECT_EQ(at<std::uint32_t>(params + 0x2E0 + 20 * i), wanted[i][2]) << i;
  }
}

TEST_F(LinuxBoot, PageTablesMapFourGibToThemselves) {
  const auto entry = load(vmlinux());
  ASSERT_TRUE(entry.ok());
  kvm_sregs sregs{};
  kvm_regs regs{};
  set_boot_registers(*entry, sregs, regs);
  const auto next = [&](std::uint64_t table, std::uint64_t index) { return at<std::uint64_t>(table + 8 * index); };
  const std::uint64_t pdpt = next(sregs.cr3, 0);
  EXPECT_EQ(pdpt & 0xFFF, 3U);
  for (const std::uint64_t address : {0ULL, 0x200000ULL, 0x3FFFFFFFULL, 0xC0000000ULL, 0xFEE00000ULL, 0xFFFFFFFFULL}) {
    const std::uint64_t directory = next(pdpt & ~0xFFFULL, address >> 30);
    EXPECT_EQ(directory & 0xFFF, 3U);
    EXPECT_EQ(next(directory & ~0xFFFULL, address >> 21 & 0x1FF), (address & ~0x1FFFFFULL) | 0x83) << address;
  }
  EXPECT_EQ(next(pdpt & ~0xFFFULL, 4), 0U) << "and nothing else";
}

TEST_F(LinuxBoot, RegistersAtTheEntry) {
  kvm_sregs sregs{};
  kvm_regs regs{};
  regs.rax = 7;
  set_boot_registers({.protocol = BootProtocol::kLinux64, .entry = 0x1000000, .start_info = 0xA000}, sregs, regs);
  EXPECT_EQ(regs.rip, 0x1000000U);
  EXPECT_EQ(regs.rsi, 0xA000U);
  EXPECT_EQ(regs.rax, 0U);
  EXPECT_EQ(regs.rflags, 2U) << "interrupts off";
  EXPECT_EQ(sregs.cs.selector, 0x10) << "__BOOT_CS";
  EXPECT_EQ(sregs.cs.l, 1);
  EXPECT_EQ(sregs.cs.db, 0);
  EXPECT_EQ(sregs.ds.selector, 0x18) << "__BOOT_DS";
  EXPECT_EQ(sregs.cr0 & 0x80000001, 0x80000001);
  EXPECT_EQ(sregs.cr4 & 0x20, 0x20U);
  EXPECT_EQ(sregs.efer & 0x500, 0x500U);
}

class LinuxBootPacked : public LinuxBoot, public ::testing::WithParamInterface<const char*> {};

TEST_P(LinuxBootPacked, BzImageIsUnpackedAndKeepsItsSetupHeader) {
  const std::string image = test::bzimage_of(test::packed(GetParam(), vmlinux()));
  const auto entry = load(image, "console=ttyS0", file("initrd", std::string(5000, 'i')));
  ASSERT_TRUE(entry.ok()) << entry.error().message();
  EXPECT_EQ(entry->protocol, BootProtocol::kLinux64);
  EXPECT_EQ(entry->entry, 0x200000U);
  EXPECT_EQ(text(0x200000, 10), "startup_64");
  const std::uint64_t params = entry->start_info;
  EXPECT_EQ(at<std::uint16_t>(params + 0x206), 0x20F) << "the kernel's own version";
  EXPECT_EQ(at<std::uint64_t>(params + 0x258), 0x1000000U) << "up to the header's end";
  EXPECT_EQ(at<std::uint32_t>(params + 0x238), 2047U) << "its own limit, not ours";
  EXPECT_EQ(text(at<std::uint32_t>(params + 0x218), 5000), std::string(5000, 'i'));
  EXPECT_EQ(at<std::uint32_t>(params + 0x21C), 5000U);
}

INSTANTIATE_TEST_SUITE_P(Formats, LinuxBootPacked, ::testing::Values("gzip", "xz", "zstd", "lz4"),
                         [](const auto& format) { return format.param; });

TEST_F(LinuxBoot, BzImageWithAPvhNoteIsEnteredThere) {
  const auto entry = load(test::bzimage_of(test::packed("gzip", test::kernel_of("pvh").build())));
  ASSERT_TRUE(entry.ok()) << entry.error().message();
  EXPECT_EQ(entry->protocol, BootProtocol::kPvh);
  EXPECT_EQ(entry->entry, 0x100000U);
}

TEST_F(LinuxBoot, InitrdStaysBelowTheKernelsLimit) {
  std::string image = test::bzimage_of(test::packed("gzip", vmlinux()));
  test::patch<std::uint32_t>(image, 0x22C, 0x7FFFFF);
  const auto entry = load(image, "", file("initrd", "i"));
  ASSERT_TRUE(entry.ok()) << entry.error().message();
  EXPECT_EQ(at<std::uint32_t>(entry->start_info + 0x218), 0x800000 - kPageBytes);
  test::patch<std::uint32_t>(image, 0x22C, 0x200000);
  const auto none = load(image, "", file("initrd", "i"));
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().code(), Errc::kResourceExhausted);
}

TEST_F(LinuxBoot, CommandLineAtAndPastTheKernelsOwnLimit) {
  const std::string image = test::bzimage_of(test::packed("gzip", vmlinux()));
  EXPECT_TRUE(load(image, std::string(2047, 'c')).ok());
  EXPECT_EQ(load(image, std::string(2048, 'c')).error().code(), Errc::kInvalidArgument);
}

TEST_F(LinuxBoot, SetupHeadersThatAreWrong) {
  const std::string good = test::bzimage_of(test::packed("gzip", vmlinux()));
  const auto with = [&](std::size_t offset, auto value) {
    std::string image = good;
    test::patch(image, offset, value);
    return refusal(image);
  };
  EXPECT_NE(with(0x1FE, std::uint16_t{0xAA54}).find("not a bzImage"), std::string::npos);
  EXPECT_NE(with(0x202, std::uint32_t{0}).find("not a bzImage"), std::string::npos);
  EXPECT_NE(with(0x206, std::uint16_t{0x20B}).find("protocol 2.11"), std::string::npos);
  EXPECT_EQ(with(0x206, std::uint16_t{0x20C}), "") << "the oldest";
  EXPECT_NE(with(0x236, std::uint16_t{2}).find("not a 64-bit kernel"), std::string::npos);
  EXPECT_NE(with(0x201, std::uint8_t{0x4D}).find("wrong length"), std::string::npos) << "ends before payload_length";
  EXPECT_EQ(with(0x201, std::uint8_t{0x4E}), "");
  EXPECT_EQ(with(0x201, std::uint8_t{0x8E}), "") << "ends where EDD begins";
  EXPECT_NE(with(0x201, std::uint8_t{0x8F}).find("wrong length"), std::string::npos);
  EXPECT_NE(with(0x248, std::uint32_t{0xFFFFFFFF}).find("past the end"), std::string::npos);
  EXPECT_NE(with(0x24C, std::uint32_t{0xFFFFFFFF}).find("past the end"), std::string::npos);
  EXPECT_NE(with(0x24C, std::uint32_t{0}).find("gzip, xz, zstd and lz4"), std::string::npos) << "an empty payload";
  EXPECT_NE(with(0x1F1, std::uint8_t{200}).find("past the end"), std::string::npos) << "setup_sects";
  EXPECT_EQ(with(0x1F1, std::uint8_t{0}), "") << "0 means 4";
  EXPECT_NE(refusal(good.substr(0, 0x28F)).find("cut short"), std::string::npos);
  EXPECT_NE(refusal(good.substr(0, 0x205)).find("not a bzImage"), std::string::npos);
  EXPECT_NE(refusal(good.substr(0, good.size() - 1)).find("cut short"), std::string::npos);
}

TEST_F(LinuxBoot, PayloadsThatAreNoKernel) {
  const auto packed = test::packed("gzip", vmlinux());
  EXPECT_NE(refusal(test::bzimage_of(packed.substr(0, packed.size() / 2))).find("gzip data is damaged"),
            std::string::npos);
  EXPECT_NE(refusal(test::bzimage_of("BZh91AY")).find("gzip, xz, zstd and lz4"), std::string::npos);
  EXPECT_NE(refusal(test::bzimage_of(test::packed("zstd", "no ELF"))).find("not an ELF file"), std::string::npos);
  EXPECT_NE(refusal(vmlinux("code", 0x1000)).find("outside its segments"), std::string::npos);
}

TEST_F(LinuxBoot, BzImageThatUnpacksToMoreThanAnyKernelIsRefused) {
  const std::string bomb = test::packed_zeros_zstd(kKernelBytesMax + 1);
  EXPECT_NE(refusal(test::bzimage_of(bomb), Errc::kResourceExhausted).find("unpacks to more than"), std::string::npos);
}

}  // namespace
}  // namespace fvmm::vmm
