// ACPI tables as a guest reads them: found by their signatures, whole, summing to zero; and the DSDT as ACPICA's own
// disassembler and compiler understand it.
#include "vmm/acpi.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "memory/guest_memory.h"
#include "support/process.h"
#include "support/table_bytes.h"
#include "support/temp_dir.h"
#include "vmm/aml.h"

namespace fvmm::vmm {
namespace {

using testing::field_at;
using testing::sum_of;
using testing::text_of;

std::string table_at(const std::string& all, std::uint64_t address) {
  const std::size_t offset = address - kAcpiAddress;
  return all.substr(offset, field_at<std::uint32_t>(all, offset + 4));
}

/// By signature, each checked; found as a guest finds them.
std::map<std::string, std::string> tables_of(const AcpiMachine& machine) {
  const std::string all = text_of(acpi_tables(machine));
  EXPECT_EQ(all.substr(0, 8), "RSD PTR ");
  EXPECT_EQ(sum_of(std::string_view(all).substr(0, 20)), 0U);
  EXPECT_EQ(sum_of(std::string_view(all).substr(0, 36)), 0U);
  std::map<std::string, std::string> tables;
  const auto add = [&](std::uint64_t address) {
    const std::string table = table_at(all, address);
    EXPECT_EQ(sum_of(table), 0U) << table.substr(0, 4);
    tables[table.substr(0, 4)] = table;
  };
  add(field_at<std::uint64_t>(all, 24));
  const std::string xsdt = tables.at("XSDT");
  for (std::size_t offset = 36; offset < xsdt.size(); offset += 8) add(field_at<std::uint64_t>(xsdt, offset));
  add(field_at<std::uint64_t>(tables.at("FACP"), 140));
  EXPECT_EQ(field_at<std::uint32_t>(tables.at("FACP"), 40), field_at<std::uint64_t>(tables.at("FACP"), 140));
  return tables;
}

TEST(Acpi, TablesAreFoundFromTheRsdpAndAreWhole) {
  for (const unsigned vcpus : {1U, 16U}) {
    for (const unsigned devices : {0U, 3U, 18U}) {
      const auto tables = tables_of({.vcpus = vcpus, .virtio_devices = devices});
      EXPECT_EQ(tables.size(), 4U);
      EXPECT_LE(acpi_tables({.vcpus = vcpus, .virtio_devices = devices}).size(), kAcpiBytesMax);
    }
  }
}

TEST(Acpi, MadtNamesEachCpuAndTheIoapic) {
  const std::string madt = tables_of({.vcpus = 3}).at("APIC");
  std::map<int, int> entries;
  for (std::size_t offset = 44; offset < madt.size(); offset += static_cast<std::uint8_t>(madt[offset + 1])) {
    ++entries[madt[offset]];
  }
  EXPECT_EQ(entries, (std::map<int, int>{{0, 3}, {1, 1}, {4, 1}}));
}

TEST(Acpi, FadtSaysHardwareReducedAndHowToReset) {
  const std::string fadt = tables_of({}).at("FACP");
  EXPECT_EQ(fadt.size(), 276U);
  EXPECT_NE(field_at<std::uint32_t>(fadt, 112) & 1U << 20, 0U);
  EXPECT_EQ(field_at<std::uint64_t>(fadt, 120), 0x64U);
  EXPECT_EQ(static_cast<std::uint8_t>(fadt[128]), 0xFEU);
}

/// The DSDT's source as ACPICA's iasl(1) reads it.
std::string disassembled(const std::string& dsdt, const std::filesystem::path& directory) {
  std::ofstream(directory / "dsdt.aml", std::ios::binary) << dsdt;
  test::Process iasl({"iasl", "-p", (directory / "dsdt").string(), "-d", (directory / "dsdt.aml").string()},
                     directory / "out", directory / "err");
  EXPECT_EQ(iasl.wait(std::chrono::seconds(30)), 0) << test::read_text(directory / "err");
  return test::read_text(directory / "dsdt.dsl");
}

TEST(Acpi, DsdtIsWhatItsSourceCompilesTo) {
  const testing::TempDir directory;
  const std::string dsdt = tables_of({.virtio_devices = 17}).at("DSDT");
  const std::string source = disassembled(dsdt, directory.path());
  for (const char* wanted : {"EisaId (\"PNP0501\")", "Device (VR16)", "\"LNRO0005\"", "0xD0010000",
                             "\"VM_Gen_Counter\"", "\"ACPI0013\"", "Notify (\\_SB.VGEN, 0x80)", "0x000F0000"}) {
    EXPECT_NE(source.find(wanted), std::string::npos) << wanted << " in\n" << source;
  }
  test::Process iasl(
      {"iasl", "-oa", "-p", (directory.path() / "again").string(), (directory.path() / "dsdt.dsl").string()},
      directory.path() / "out", directory.path() / "err");
  EXPECT_EQ(iasl.wait(std::chrono::seconds(30)), 0) << test::read_text(directory.path() / "err");
  const std::string again = test::read_text(directory.path() / "again.aml");
  ASSERT_GT(again.size(), 36U);
  EXPECT_EQ(again.substr(36), dsdt.substr(36)) << "all but the header, in which the compiler names itself";
}

TEST(Acpi, LengthsOfEverySizeAreEncoded) {
  // PkgLength counts itself: 62 bytes of body are the last that one byte holds, 4,093 the last of two.
  EXPECT_EQ(aml::scope("ABCD", aml::Bytes(58, 0xA3)).size(), 1U + 1 + 62);
  EXPECT_EQ(aml::scope("ABCD", aml::Bytes(59, 0xA3)).size(), 1U + 2 + 63);
  EXPECT_EQ(aml::scope("ABCD", aml::Bytes(4089, 0xA3)).size(), 1U + 2 + 4093);
  EXPECT_EQ(aml::scope("ABCD", aml::Bytes(4090, 0xA3)).size(), 1U + 3 + 4094);
  const aml::Bytes two = aml::scope("ABCD", aml::Bytes(59, 0xA3));
  EXPECT_EQ(two[1], 0x40 | (65 & 0xF));
  EXPECT_EQ(two[2], 65 >> 4);
}

TEST(Acpi, GenerationIdIsItsSixteenBytes) {
  auto memory = *memory::GuestMemory::reserve(memory::kRamBytesMin);
  ASSERT_TRUE(memory->map_zero());
  const Id id = Id::random();
  ASSERT_TRUE(write_acpi(*memory, {}, id));
  std::string found(16, '\0');
  ASSERT_TRUE(memory->read(kGenerationIdAddress, std::as_writable_bytes(std::span(found))));
  EXPECT_EQ(found, id.raw());
}

}  // namespace
}  // namespace fvmm::vmm
