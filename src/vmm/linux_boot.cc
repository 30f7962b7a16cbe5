// Linux's 64-bit boot protocol (Linux Documentation/x86/boot.rst and zero-page.rst): the setup header of a bzImage,
// boot_params, and the state in which startup_64 is entered.
#include <fmt/format.h>

#include <array>
#include <cstring>

#include "base/check.h"
#include "vmm/boot_data.h"

namespace fvmm::vmm {
namespace {

// Boot data below 1 MiB, behind what PVH uses and the command line at 0x8000.
constexpr std::uint64_t kBootParamsAddress = 0xA000;
constexpr std::uint64_t kGdtAddress = 0xB000;
constexpr std::uint64_t kPml4Address = 0xC000;
constexpr std::uint64_t kPdptAddress = 0xD000;
constexpr std::uint64_t kPageDirectories = 0xE000;  // four of them: 4 GiB in pages of 2 MiB
constexpr std::uint64_t kMappedGiB = 4;

// Offsets in the file, and in boot_params from kSetupHeader on.
constexpr std::size_t kSetupHeader = 0x1F1, kBootFlag = 0x1FE, kHeaderLength = 0x201, kMagic = 0x202, kVersion = 0x206;
constexpr std::size_t kTypeOfLoader = 0x210, kRamdiskImage = 0x218, kRamdiskSize = 0x21C, kCmdLinePtr = 0x228;
constexpr std::size_t kInitrdAddrMax = 0x22C, kKernelAlignment = 0x230, kXloadflags = 0x236, kCmdlineSize = 0x238;
constexpr std::size_t kPayloadOffset = 0x248, kPayloadLength = 0x24C;
constexpr std::size_t kSetupHeaderEndMax = 0x290;  // where EDD's data begins in boot_params
// Fields of boot_params itself.
constexpr std::size_t kE820Entries = 0x1E8, kE820Table = 0x2D0, kE820EntriesMax = 128;

constexpr std::uint16_t kBootFlagValue = 0xAA55;
constexpr std::uint16_t kVersionMin = 0x020C;  // the first with xloadflags (Linux 3.8)
constexpr std::uint16_t kXlfKernel64 = 1;
constexpr std::size_t kSectorBytes = 512;
constexpr std::uint8_t kDefaultSetupSectors = 4;
constexpr std::uint8_t kLoaderUndefined = 0xFF;

struct E820Entry {
  std::uint64_t address, bytes;
  std::uint32_t type;
} __attribute__((packed));
static_assert(sizeof(E820Entry) == 20);

template <class T>
T peek(std::span<const std::byte> bytes, std::size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

using Page = std::array<std::byte, kPageBytes>;

template <class T>
void poke(Page& page, std::size_t offset, T value) {
  std::memcpy(page.data() + offset, &value, sizeof value);
}

Error bad(std::string_view why) {
  return {Errc::kInvalidArgument, fmt::format("bzImage: {}", why)};
}

// What a loader must give a kernel of which only the ELF image is known.
void make_up_header(Page& params) {
  constexpr std::uint32_t kHdrs = 0x53726448;
  constexpr std::uint32_t kAlignment = 0x200000;
  poke(params, kBootFlag, kBootFlagValue);
  poke(params, kMagic, kHdrs);
  poke(params, kVersion, kVersionMin);
  poke(params, kKernelAlignment, kAlignment);
}

Status write_page_tables(memory::GuestMemory& memory) {
  constexpr std::uint64_t kTable = 0x3;      // present, writable
  constexpr std::uint64_t kPage2MiB = 0x83;  // the same, and the page itself
  constexpr std::uint64_t kEntries = 512;
  std::array<std::uint64_t, kEntries> table{};
  table[0] = kPdptAddress | kTable;
  FVMM_TRY(memory.write(kPml4Address, bytes_of(table)));
  table = {};
  for (std::uint64_t gib = 0; gib < kMappedGiB; ++gib) table[gib] = (kPageDirectories + gib * kPageBytes) | kTable;
  FVMM_TRY(memory.write(kPdptAddress, bytes_of(table)));
  for (std::uint64_t gib = 0; gib < kMappedGiB; ++gib) {
    for (std::uint64_t i = 0; i < kEntries; ++i) table[i] = (gib * kEntries + i) * 2 * kMiB | kPage2MiB;
    FVMM_TRY(memory.write(kPageDirectories + gib * kPageBytes, bytes_of(table)));
  }
  return {};
}

constexpr std::uint16_t kCodeSelector = 0x10, kDataSelector = 0x18, kTaskSelector = 0x20;
constexpr std::array<std::uint64_t, 6> kGdt{0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x0000890000000067, 0};

}  // namespace

bool is_bzimage(std::span<const std::byte> file) {
  return file.size() >= kVersion && peek<std::uint16_t>(file, kBootFlag) == kBootFlagValue &&
         std::memcmp(file.data() + kMagic, "HdrS", 4) == 0;
}

Result<BzImage> parse_bzimage(std::span<const std::byte> file) {
  if (!is_bzimage(file)) return bad("no setup header");
  if (file.size() < kSetupHeaderEndMax) return bad("cut short");
  const auto version = peek<std::uint16_t>(file, kVersion);
  if (version < kVersionMin) {
    return bad(fmt::format("boot protocol {}.{:02}; a 64-bit kernel of Linux 3.8 or later is needed", version >> 8,
                           version & 0xFF));
  }
  if ((peek<std::uint16_t>(file, kXloadflags) & kXlfKernel64) == 0) return bad("not a 64-bit kernel");
  const std::size_t header_end = kMagic + peek<std::uint8_t>(file, kHeaderLength);
  if (header_end < kPayloadLength + 4 || header_end > kSetupHeaderEndMax)
    return bad("a setup header of a wrong length");
  std::uint64_t sectors = peek<std::uint8_t>(file, kSetupHeader);
  if (sectors == 0) sectors = kDefaultSetupSectors;
  const std::uint64_t at = (sectors + 1) * kSectorBytes + peek<std::uint32_t>(file, kPayloadOffset);
  const std::uint64_t bytes = peek<std::uint32_t>(file, kPayloadLength);
  if (at > file.size() || bytes > file.size() - at) return bad("the kernel lies past the end of the file (cut short?)");
  BzImage image;
  image.setup = file.subspan(kSetupHeader, header_end - kSetupHeader);
  image.payload = file.subspan(at, bytes);
  image.initrd_address_max = peek<std::uint32_t>(file, kInitrdAddrMax);
  image.cmdline_bytes_max = peek<std::uint32_t>(file, kCmdlineSize);
  return image;
}

Result<std::uint32_t> write_linux_boot_data(memory::GuestMemory& memory, std::span<const std::byte> setup,
                                            const LoadedInitrd& initrd, std::size_t cmdline_bytes) {
  Page params{};
  if (setup.empty()) {
    make_up_header(params);
  } else {
    FVMM_CHECK(setup.size() <= kSetupHeaderEndMax - kSetupHeader, "parse_bzimage() has seen the length");
    std::memcpy(params.data() + kSetupHeader, setup.data(), setup.size());
  }
  poke(params, kTypeOfLoader, kLoaderUndefined);
  poke(params, kCmdLinePtr, static_cast<std::uint32_t>(kCmdlineAddress));
  if (setup.empty()) poke(params, kCmdlineSize, static_cast<std::uint32_t>(cmdline_bytes));
  poke(params, kRamdiskImage, static_cast<std::uint32_t>(initrd.address));
  poke(params, kRamdiskSize, static_cast<std::uint32_t>(initrd.bytes));
  const auto ranges = memory_ranges(memory.layout());
  FVMM_CHECK(ranges.size() <= kE820EntriesMax, "few ranges");
  poke(params, kE820Entries, static_cast<std::uint8_t>(ranges.size()));
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    poke(params, kE820Table + i * sizeof(E820Entry), E820Entry{ranges[i].address, ranges[i].bytes, ranges[i].type});
  }
  FVMM_TRY(memory.write(kBootParamsAddress, params));
  FVMM_TRY(memory.write(kGdtAddress, bytes_of(kGdt)));
  FVMM_TRY(write_page_tables(memory));
  return static_cast<std::uint32_t>(kBootParamsAddress);
}

void set_linux64_registers(const BootEntry& entry, kvm_sregs& sregs, kvm_regs& regs) {
  kvm_segment flat{};
  flat.limit = 0xFFFFFFFF;
  flat.present = 1;
  flat.s = 1;
  flat.db = 1;
  flat.g = 1;
  flat.type = 3;  // data, read/write, accessed
  flat.selector = kDataSelector;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
  flat.type = 11;  // code, execute/read, accessed
  flat.selector = kCodeSelector;
  flat.db = 0;
  flat.l = 1;
  sregs.cs = flat;
  kvm_segment task{};
  task.limit = 0x67;
  task.present = 1;
  task.type = 11;  // busy TSS
  task.selector = kTaskSelector;
  sregs.tr = task;
  sregs.gdt.base = kGdtAddress;
  sregs.gdt.limit = sizeof kGdt - 1;
  sregs.idt.base = 0;
  sregs.idt.limit = 0;
  sregs.cr0 = 0x80000011;  // PG, ET, PE
  sregs.cr3 = kPml4Address;
  sregs.cr4 = 0x20;    // PAE
  sregs.efer = 0x500;  // LMA, LME
  regs = {};
  regs.rflags = 0x2;
  regs.rip = entry.entry;
  regs.rsi = entry.start_info;
}

}  // namespace fvmm::vmm
