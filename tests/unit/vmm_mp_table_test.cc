// The MP table as a guest reads it: found by its signature, sums to zero, one entry for each CPU and interrupt line.
#include "vmm/mp_table.h"

#include <gtest/gtest.h>

#include <string>

#include "memory/guest_memory.h"
#include "support/table_bytes.h"

namespace fvmm::vmm {
namespace {

using testing::field_at;
using testing::sum_of;
using testing::text_of;

constexpr std::size_t kPointerBytes = 16;
constexpr std::size_t kHeaderBytes = 44;

/// Entries behind the header, each its own bytes: 20 of a processor, 8 of all others.
std::vector<std::string> entries_of(const std::string& all) {
  std::vector<std::string> entries;
  for (std::size_t offset = kPointerBytes + kHeaderBytes; offset < all.size();) {
    const std::size_t bytes = all[offset] == 0 ? 20 : 8;
    entries.push_back(all.substr(offset, bytes));
    offset += bytes;
  }
  return entries;
}

TEST(MpTable, PointerAndHeaderForEveryCount) {
  for (unsigned vcpus = 1; vcpus <= 16; ++vcpus) {
    SCOPED_TRACE(vcpus);
    const std::string all = text_of(mp_table(vcpus));
    EXPECT_EQ(all.substr(0, 4), "_MP_");
    EXPECT_EQ(field_at<std::uint32_t>(all, 4), kMpTableAddress + kPointerBytes);
    EXPECT_EQ(all[8], 1) << "16 bytes";
    EXPECT_EQ(all[9], 4) << "specification 1.4";
    EXPECT_EQ(all[11], 0) << "a table follows, no default configuration";
    EXPECT_EQ(sum_of(all.substr(0, kPointerBytes)), 0U);
    const std::string table = all.substr(kPointerBytes);
    EXPECT_EQ(table.substr(0, 4), "PCMP");
    EXPECT_EQ(field_at<std::uint16_t>(table, 4), table.size());
    EXPECT_EQ(field_at<std::uint16_t>(table, 34), entries_of(all).size());
    EXPECT_EQ(field_at<std::uint32_t>(table, 36), 0xFEE00000U);
    EXPECT_EQ(sum_of(table), 0U);
    EXPECT_LE(all.size(), kMpTableBytesMax);
  }
}

TEST(MpTable, EntriesComeInTheirOrder) {
  const std::string all = text_of(mp_table(3));
  const auto entries = entries_of(all);
  ASSERT_EQ(entries.size(), 3U + 1 + 1 + 24 + 2);
  for (unsigned i = 0; i < 3; ++i) {
    EXPECT_EQ(entries[i][0], 0);
    EXPECT_EQ(entries[i][1], static_cast<char>(i)) << "APIC id";
    EXPECT_EQ(entries[i][3], i == 0 ? 3 : 1) << "enabled, and the first one boots";
  }
  EXPECT_EQ(entries[3], std::string("\1\0ISA   ", 8));
  EXPECT_EQ(entries[4].substr(0, 4), std::string("\2\3\x11\1", 4)) << "an id that no CPU has";
  EXPECT_EQ(field_at<std::uint32_t>(entries[4], 4), 0xFEC00000U);
  for (unsigned pin = 0; pin < kIoapicPins; ++pin) {
    const std::string wanted{3, 0, 0, 0, 0, static_cast<char>(pin), 3, static_cast<char>(pin)};
    EXPECT_EQ(entries[5 + pin], wanted) << "pin " << pin;
  }
  EXPECT_EQ(entries[29], std::string("\4\3\0\0\0\0\0\0", 8)) << "PIC at LINT0 of the first";
  EXPECT_EQ(entries[30], std::string("\4\1\0\0\0\0\xff\1", 8)) << "NMI at LINT1 of all";
}

TEST(MpTable, LiesInReservedMemory) {
  const auto memory = memory::GuestMemory::reserve(16 * kMiB).value();
  ASSERT_TRUE(memory->map_zero().ok());
  ASSERT_TRUE(write_mp_table(*memory, 16).ok());
  std::string read(4, '?');
  ASSERT_TRUE(memory->read(0x9FC00, std::as_writable_bytes(std::span(read))).ok());
  EXPECT_EQ(read, "_MP_");
}

}  // namespace
}  // namespace fvmm::vmm
