#include "vmm/acpi.h"

#include <array>
#include <cstddef>
#include <cstring>

#include "base/check.h"
#include "vmm/table_bytes.h"

namespace fvmm::vmm {
namespace {

constexpr std::size_t kTableAlignment = 16;

struct __attribute__((packed)) Rsdp {  // 5.2.5.3
  std::array<char, 8> signature{'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '};
  std::uint8_t checksum = 0;  // of the first 20 bytes
  std::array<char, 6> oem{'F', 'V', 'M', 'M', ' ', ' '};
  std::uint8_t revision = 2;
  std::uint32_t rsdt = 0;
  std::uint32_t bytes = 36;
  std::uint64_t xsdt = 0;
  std::uint8_t extended_checksum = 0;  // of all
  std::array<std::uint8_t, 3> reserved{};
};
static_assert(sizeof(Rsdp) == 36);
constexpr std::size_t kRsdpFirstBytes = 20;

struct __attribute__((packed)) Header {  // 5.2.6
  std::array<char, 4> signature{};
  std::uint32_t bytes = 0;
  std::uint8_t revision = 0;
  std::uint8_t checksum = 0;
  std::array<char, 6> oem{'F', 'V', 'M', 'M', ' ', ' '};
  std::array<char, 8> oem_table{'F', 'V', 'M', 'M', 'V', 'M', ' ', ' '};
  std::uint32_t oem_revision = 1;
  std::array<char, 4> creator{'F', 'V', 'M', 'M'};
  std::uint32_t creator_revision = 1;
};
static_assert(sizeof(Header) == 36);

struct __attribute__((packed)) GenericAddress {  // 5.2.3.2
  std::uint8_t space = 0, bits = 0, offset = 0, access = 0;
  std::uint64_t address = 0;
};

/// 5.2.9, revision 6.5. Without the legacy registers nothing but flags, the DSDT and the reset register counts.
struct __attribute__((packed)) Fadt {
  Header header{.signature = {'F', 'A', 'C', 'P'}, .revision = 6};
  std::uint32_t facs = 0, dsdt = 0;
  std::array<std::uint8_t, 109 - 44> legacy_registers{};
  std::uint16_t boot_architecture = 0;
  std::uint8_t reserved = 0;
  std::uint32_t flags = 0;
  GenericAddress reset;
  std::uint8_t reset_value = 0;
  std::uint16_t arm_boot_architecture = 0;
  std::uint8_t minor_revision = 5;
  std::uint64_t extended_facs = 0, extended_dsdt = 0;
  std::array<std::uint8_t, 268 - 148> extended_registers{};
  std::uint64_t hypervisor = 0;
};
static_assert(offsetof(Fadt, flags) == 112 && offsetof(Fadt, extended_dsdt) == 140 && sizeof(Fadt) == 276);
constexpr std::uint16_t kLegacyDevices = 1 << 0, kHas8042 = 1 << 1, kNoVga = 1 << 2, kNoCmosRtc = 1 << 5;
constexpr std::uint32_t kWbinvd = 1 << 0, kResetRegister = 1 << 10, kHardwareReduced = 1 << 20;

struct __attribute__((packed)) LocalApic {
  std::uint8_t type = 0, bytes = 8, cpu = 0, id = 0;
  std::uint32_t flags = 1;  // enabled
};
struct __attribute__((packed)) Ioapic {
  std::uint8_t type = 1, bytes = 12, id = 0, reserved = 0;
  std::uint32_t address = kIoapicAddress, gsi_base = 0;
};
struct __attribute__((packed)) LocalNmi {
  std::uint8_t type = 4, bytes = 6, cpu = 0xFF;  // of every CPU
  std::uint16_t flags = 0;
  std::uint8_t lint = 1;
};

using Table = std::vector<std::byte>;

/// Length and checksum into the header of a table that is whole.
Table sealed(Table table) {
  const auto bytes = static_cast<std::uint32_t>(table.size());
  std::memcpy(table.data() + offsetof(Header, bytes), &bytes, sizeof bytes);
  table[offsetof(Header, checksum)] = std::byte{checksum(table)};
  return table;
}

Table dsdt(const AcpiMachine& machine) {
  Table table;
  append(table, Header{.signature = {'D', 'S', 'D', 'T'}, .revision = 2});
  for (const std::uint8_t byte : acpi_dsdt(machine)) table.push_back(std::byte{byte});
  return sealed(std::move(table));
}

/// The keyboard controller's reset line, which ends the VM.
Table fadt(std::uint64_t dsdt_address) {
  Fadt fields;
  fields.dsdt = static_cast<std::uint32_t>(dsdt_address);
  fields.extended_dsdt = dsdt_address;
  fields.boot_architecture = kLegacyDevices | kHas8042 | kNoVga | kNoCmosRtc;
  fields.flags = kWbinvd | kResetRegister | kHardwareReduced;
  fields.reset = {.space = 1, .bits = 8, .offset = 0, .access = 1, .address = 0x64};
  fields.reset_value = 0xFE;
  Table table;
  append(table, fields);
  return sealed(std::move(table));
}

Table madt(unsigned vcpus) {
  Table table;
  append(table, Header{.signature = {'A', 'P', 'I', 'C'}, .revision = 5});
  append(table, kLocalApicAddress);
  append(table, std::uint32_t{1});  // there is a PIC, too
  for (unsigned cpu = 0; cpu < vcpus; ++cpu) {
    LocalApic apic;
    apic.cpu = apic.id = static_cast<std::uint8_t>(cpu);
    append(table, apic);
  }
  Ioapic ioapic;
  ioapic.id = static_cast<std::uint8_t>(vcpus);
  append(table, ioapic);
  append(table, LocalNmi{});
  return sealed(std::move(table));
}

Table xsdt(std::span<const std::uint64_t> tables) {
  Table table;
  append(table, Header{.signature = {'X', 'S', 'D', 'T'}, .revision = 1});
  for (const std::uint64_t address : tables) append(table, address);
  return sealed(std::move(table));
}

}  // namespace

std::vector<std::byte> acpi_tables(const AcpiMachine& machine) {
  Table all(sizeof(Rsdp));
  const auto place = [&all](const Table& table) {
    all.resize((all.size() + kTableAlignment - 1) / kTableAlignment * kTableAlignment);
    const std::uint64_t address = kAcpiAddress + all.size();
    all.insert(all.end(), table.begin(), table.end());
    return address;
  };
  const std::uint64_t dsdt_address = place(dsdt(machine));
  const std::array tables{place(fadt(dsdt_address)), place(madt(machine.vcpus))};
  Rsdp rsdp;
  rsdp.xsdt = place(xsdt(tables));
  const auto bytes = std::as_bytes(std::span(&rsdp, 1));
  rsdp.checksum = checksum(bytes.first(kRsdpFirstBytes));
  rsdp.extended_checksum = checksum(bytes);
  std::memcpy(all.data(), &rsdp, sizeof rsdp);
  return all;
}

Status write_acpi(memory::GuestMemory& memory, const AcpiMachine& machine, const Id& generation) {
  const auto tables = acpi_tables(machine);
  FVMM_CHECK(tables.size() <= kAcpiBytesMax, "16 CPUs and 18 devices fit");
  FVMM_TRY(memory.write(kAcpiAddress, tables), "ACPI tables");
  return write_generation_id(memory, generation);
}

Status write_generation_id(memory::GuestMemory& memory, const Id& generation) {
  const std::string raw = generation.raw();
  return memory.write(kGenerationIdAddress, std::as_bytes(std::span(raw)));
}

}  // namespace fvmm::vmm
