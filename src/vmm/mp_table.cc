#include "vmm/mp_table.h"

#include <array>
#include <cstring>
#include <span>

#include "base/check.h"
#include "vmm/table_bytes.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint8_t kSpecRevision = 4;    // 1.4
constexpr std::uint8_t kApicVersion = 0x14;  // KVM's local APIC
constexpr std::uint8_t kIoapicVersion = 0x11;
constexpr std::uint8_t kAllApics = 0xFF;
enum EntryType : std::uint8_t { kProcessor, kBus, kIoapic, kIoInterrupt, kLocalInterrupt };
enum InterruptType : std::uint8_t { kVectored = 0, kNmi = 1, kExternal = 3 };

struct FloatingPointer {
  std::array<char, 4> signature{'_', 'M', 'P', '_'};
  std::uint32_t table = 0;
  std::uint8_t length = 1;  // in units of 16 bytes
  std::uint8_t revision = kSpecRevision;
  std::uint8_t checksum = 0;
  std::array<std::uint8_t, 5> features{};  // no default configuration, no IMCR: virtual wire
};
static_assert(sizeof(FloatingPointer) == 16);

struct TableHeader {
  std::array<char, 4> signature{'P', 'C', 'M', 'P'};
  std::uint16_t bytes = 0;
  std::uint8_t revision = kSpecRevision;
  std::uint8_t checksum = 0;
  std::array<char, 8> maker{'F', 'V', 'M', 'M', ' ', ' ', ' ', ' '};
  std::array<char, 12> product{'V', 'I', 'R', 'T', 'U', 'A', 'L', ' ', ' ', ' ', ' ', ' '};
  std::uint32_t oem_table = 0;
  std::uint16_t oem_bytes = 0;
  std::uint16_t entries = 0;
  std::uint32_t local_apic = kLocalApicAddress;
  std::uint16_t extended_bytes = 0;
  std::uint8_t extended_checksum = 0;
  std::uint8_t reserved = 0;
};
static_assert(sizeof(TableHeader) == 44);

struct ProcessorEntry {
  std::uint8_t type = kProcessor;
  std::uint8_t apic_id = 0;
  std::uint8_t apic_version = kApicVersion;
  std::uint8_t flags = 1;  // enabled; bit 1: the one that boots
  std::uint32_t signature = 0x600;
  std::uint32_t features = 0x201;  // FPU, APIC
  std::array<std::uint32_t, 2> reserved{};
};
static_assert(sizeof(ProcessorEntry) == 20);

struct BusEntry {
  std::uint8_t type = kBus;
  std::uint8_t id = 0;
  std::array<char, 6> name{'I', 'S', 'A', ' ', ' ', ' '};
};
static_assert(sizeof(BusEntry) == 8);

struct IoapicEntry {
  std::uint8_t type = kIoapic;
  std::uint8_t apic_id = 0;
  std::uint8_t version = kIoapicVersion;
  std::uint8_t enabled = 1;
  std::uint32_t address = kIoapicAddress;
};
static_assert(sizeof(IoapicEntry) == 8);

struct InterruptEntry {
  std::uint8_t type = kIoInterrupt;
  std::uint8_t kind = kVectored;
  std::uint16_t flags = 0;  // polarity and trigger as the bus has them: high, edge
  std::uint8_t source_bus = 0;
  std::uint8_t source_irq = 0;
  std::uint8_t apic_id = 0;
  std::uint8_t pin = 0;
};
static_assert(sizeof(InterruptEntry) == 8);

}  // namespace

std::vector<std::byte> mp_table(unsigned vcpus) {
  const auto ioapic_id = static_cast<std::uint8_t>(vcpus);  // the first that no CPU has
  std::vector<std::byte> entries;
  std::uint16_t count = 0;
  const auto add = [&](const auto& entry) {
    append(entries, entry);
    ++count;
  };
  for (unsigned i = 0; i < vcpus; ++i) {
    ProcessorEntry cpu;
    cpu.apic_id = static_cast<std::uint8_t>(i);
    if (i == 0) cpu.flags |= 2;
    add(cpu);
  }
  add(BusEntry{});
  IoapicEntry ioapic;
  ioapic.apic_id = ioapic_id;
  add(ioapic);
  for (unsigned pin = 0; pin < kIoapicPins; ++pin) {
    InterruptEntry line;
    line.source_irq = line.pin = static_cast<std::uint8_t>(pin);
    line.apic_id = ioapic_id;
    add(line);
  }
  // The PIC at LINT0 of the CPU that boots, NMI at LINT1 of all.
  add(InterruptEntry{.type = kLocalInterrupt, .kind = kExternal, .apic_id = 0, .pin = 0});
  add(InterruptEntry{.type = kLocalInterrupt, .kind = kNmi, .apic_id = kAllApics, .pin = 1});

  TableHeader header;
  header.bytes = static_cast<std::uint16_t>(sizeof header + entries.size());
  header.entries = count;
  std::vector<std::byte> table;
  append(table, header);
  table.insert(table.end(), entries.begin(), entries.end());
  table[offsetof(TableHeader, checksum)] = std::byte{checksum(table)};

  FloatingPointer pointer;
  pointer.table = static_cast<std::uint32_t>(kMpTableAddress + sizeof pointer);
  pointer.checksum = checksum(std::as_bytes(std::span(&pointer, 1)));
  std::vector<std::byte> all;
  append(all, pointer);
  all.insert(all.end(), table.begin(), table.end());
  return all;
}

Status write_mp_table(memory::GuestMemory& memory, unsigned vcpus) {
  const auto table = mp_table(vcpus);
  FVMM_CHECK(table.size() <= kMpTableBytesMax, "16 CPUs and 24 lines fit");
  return memory.write(kMpTableAddress, table);
}

}  // namespace fvmm::vmm
