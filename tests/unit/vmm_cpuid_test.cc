// CPU templates on tables made up here: what each keeps, and what a destination is checked for.
#include "vmm/cpuid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "vmm/cpu_template.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint32_t kTscKhz = 2'100'000;

kvm_cpuid_entry2 entry(std::uint32_t function, std::uint32_t index = 0) {
  kvm_cpuid_entry2 made{};
  made.function = function;
  made.index = index;
  return made;
}

kvm_cpuid_entry2 full(std::uint32_t function, std::uint32_t index = 0) {
  kvm_cpuid_entry2 made = entry(function, index);
  made.eax = made.ebx = made.ecx = made.edx = 0xFFFFFFFF;
  return made;
}

kvm_cpuid_entry2 vendor(std::string_view name) {
  kvm_cpuid_entry2 made = entry(0);
  made.eax = 0x1F;
  std::memcpy(&made.ebx, name.data(), 4);
  std::memcpy(&made.edx, name.data() + 4, 4);
  std::memcpy(&made.ecx, name.data() + 8, 4);
  return made;
}

/// A host that has every feature there is a bit for.
CpuidTable rich_host() {
  CpuidTable table{vendor("GenuineIntel"), full(0x1), full(0x7), full(0x7, 1), full(0xA), full(0xB), full(0xB, 1)};
  for (const std::uint32_t index : {0U, 1U, 2U, 9U}) table.push_back(full(0xD, index));
  table.push_back(full(0x12));
  table.push_back(full(0x14));
  table.push_back(full(0x1F));
  table.push_back(entry(0x40000000));
  table.back().eax = 0x40000001;
  for (const std::uint32_t function : {0x40000001U, 0x80000000U, 0x80000001U, 0x80000007U, 0x80000008U, 0x80000021U}) {
    table.push_back(full(function));
  }
  return table;
}

const kvm_cpuid_entry2* find(const CpuidTable& table, std::uint32_t function, std::uint32_t index = 0) {
  for (const kvm_cpuid_entry2& one : table) {
    if (one.function == function && one.index == index) return &one;
  }
  return nullptr;
}

kvm_cpuid_entry2& at(CpuidTable& table, std::uint32_t function, std::uint32_t index = 0) {
  return const_cast<kvm_cpuid_entry2&>(*find(table, function, index));
}

CpuidTable built(std::string_view name, const CpuidTable& host = rich_host()) {
  return build_cpuid(name, host, kTscKhz).value();
}

TEST(CpuTemplate, UnknownNameIsRefusedAndListsTheKnown) {
  const auto table = build_cpuid("skylake", rich_host(), kTscKhz);
  ASSERT_FALSE(table.ok());
  EXPECT_EQ(table.error().code(), Errc::kNotFound);
  for (const std::string& known : builtin_cpu_template_names()) {
    EXPECT_NE(table.error().message().find(known), std::string::npos) << known;
    EXPECT_TRUE(build_cpuid(known, rich_host(), kTscKhz).ok()) << known;
  }
}

TEST(CpuTemplate, DefaultFollowsTheHost) {
  EXPECT_EQ(default_cpu_template({.pvm = true}), "pvm");
  EXPECT_EQ(default_cpu_template({.pvm = false}), "host");
}

TEST(CpuTemplate, HostKeepsWhatKvmSupports) {
  const CpuidTable table = built("host");
  EXPECT_EQ(find(table, 0x1)->edx, 0xFFFFFFFF);
  EXPECT_EQ(find(table, 0xD)->eax, 0xFFFFFFFF);
  EXPECT_EQ(find(table, 0x40000001)->eax, 0xFFFFFFFF);
  EXPECT_NE(find(table, 0x14), nullptr);
}

TEST(CpuTemplate, NoneOffersWhatASavedStateDoesNotHold) {
  for (const std::string& name : builtin_cpu_template_names()) {
    const CpuidTable table = built(name);
    EXPECT_EQ(find(table, 0x1)->ecx & (1U << 5), 0U) << name << ": VMX";
    EXPECT_EQ(find(table, 0x80000001)->ecx & (1U << 2), 0U) << name << ": SVM";
    EXPECT_EQ(find(table, 0x7)->ebx & (1U << 2), 0U) << name << ": SGX";
    EXPECT_EQ(find(table, 0x7)->ecx & (1U << 30), 0U) << name << ": SGX launch control";
    EXPECT_EQ(find(table, 0x12), nullptr) << name << ": SGX enclave sizes";
  }
}

TEST(CpuTemplate, EachHasHypervisorBitDeadlineTimerAndTimingLeaf) {
  CpuidTable bare = rich_host();
  at(bare, 0x1).ecx = 0;
  for (const std::string& name : builtin_cpu_template_names()) {
    const CpuidTable table = built(name, bare);
    EXPECT_EQ(find(table, 0x1)->ecx, (1U << 31) | (1U << 24)) << name;
    EXPECT_EQ(find(table, 0x40000000)->eax, 0x40000010U) << name;
    ASSERT_NE(find(table, 0x40000010), nullptr) << name;
    EXPECT_EQ(find(table, 0x40000010)->eax, kTscKhz) << name;
    EXPECT_EQ(find(table, 0x40000010)->ebx, 1'000'000U) << name;
  }
}

TEST(CpuTemplate, BaselineMasksFeatureWords) {
  const CpuidTable table = built("baseline");
  EXPECT_EQ(find(table, 0x1)->ecx, 0xC7BA2203U);  // no AVX (28), FMA (12), F16C (29), MOVBE (22), VMX (5)
  EXPECT_EQ(find(table, 0x7)->ebx, 0x00000281U);
  EXPECT_EQ(find(table, 0x7)->ecx, 0U);
  EXPECT_EQ(find(table, 0x80000001)->ecx, 1U);
  EXPECT_EQ(find(table, 0x80000007)->edx, 0x100U);
  EXPECT_EQ(find(table, 0x40000001)->eax, 0x01000009U);
}

TEST(CpuTemplate, BaselineHasNoStateBeyondSse) {
  const CpuidTable table = built("baseline");
  EXPECT_EQ(find(table, 0xD)->eax, 3U);
  EXPECT_EQ(find(table, 0xD)->ebx, 576U);
  EXPECT_EQ(find(table, 0xD)->ecx, 576U);
  EXPECT_EQ(find(table, 0xD)->edx, 0U);
  EXPECT_EQ(find(table, 0xD, 1)->eax, 1U);
  EXPECT_EQ(find(table, 0xD, 2), nullptr);
  EXPECT_EQ(find(table, 0xD, 9), nullptr);
}

TEST(CpuTemplate, BaselineEndsAtTheLeavesItKnows) {
  const CpuidTable table = built("baseline");
  EXPECT_EQ(find(table, 0)->eax, 0xDU);
  EXPECT_EQ(find(table, 0x7)->eax, 0U);
  EXPECT_EQ(find(table, 0x80000000)->eax, 0x80000008U);
  for (const std::uint32_t gone : {0xAU, 0x14U, 0x1FU, 0x80000021U}) EXPECT_EQ(find(table, gone), nullptr) << gone;
  EXPECT_EQ(find(table, 0x7, 1), nullptr);
}

TEST(CpuTemplate, BaselineOfTwoHostsFitsBoth) {
  CpuidTable old_host = rich_host();
  at(old_host, 0x7).ebx = 0x281;
  at(old_host, 0x7).ecx = 0;
  at(old_host, 0xD).eax = 0x7;
  old_host.erase(std::remove_if(old_host.begin(), old_host.end(),
                                [](const auto& one) { return one.function == 0x7 && one.index == 1; }),
                 old_host.end());
  EXPECT_FALSE(check_cpuid_fits(built("host"), old_host).ok());
  EXPECT_TRUE(check_cpuid_fits(built("baseline"), old_host).ok());
  EXPECT_TRUE(check_cpuid_fits(built("baseline", old_host), rich_host()).ok());
}

TEST(CpuTemplate, PvmLacksWhatHangsOrStopsThere) {
  const CpuidTable table = built("pvm");
  EXPECT_EQ(find(table, 0x1)->ecx & (1U << 13), 0U) << "cx16";
  for (const unsigned bit : {4U, 7U, 9U, 10U, 11U, 13U, 14U}) {
    EXPECT_EQ(find(table, 0x40000001)->eax & (1U << bit), 0U) << "PV feature " << bit;
  }
  EXPECT_NE(find(table, 0x40000001)->eax & (1U << 3), 0U) << "kvmclock stays";
  EXPECT_NE(find(table, 0x80000008)->ebx & (1U << 2), 0U) << "xsaveerptr";
}

CpuidTable host_with_topology() {
  CpuidTable host = rich_host();
  for (const std::uint32_t function : {0x8000001DU, 0x8000001EU}) host.push_back(full(function));
  for (std::uint32_t index = 0; index < 5; ++index) {
    host.push_back(full(0x4, index));
    // Type 1 and the cache's level; the fifth says that there are no more.
    host.back().eax = index == 4 ? 0 : 0xFFFFC000 | std::max(index, 1U) << 5 | 1;
  }
  return host;
}

TEST(CpuTopology, ApicIdInEachLeaf) {
  const CpuidTable table = for_vcpu(built("host", host_with_topology()), 5, 6);
  EXPECT_EQ(find(table, 0x1)->ebx, 0x0506FFFFU);
  for (const std::uint32_t function : {0xBU, 0x1FU}) {
    for (const std::uint32_t level : {0U, 1U, 2U}) {
      EXPECT_EQ(find(table, function, level)->edx, 5U);
      EXPECT_EQ(find(table, function, level)->ecx & 0xFF, level);
    }
  }
  EXPECT_EQ(find(table, 0x8000001E)->eax, 5U);
  EXPECT_EQ(find(table, 0x7)->edx, 0xFFFFFFFF);
}

TEST(CpuTopology, OnePackageOfCoresWithOneThread) {
  const struct { std::uint32_t vcpus, bits; } all[] = {{1, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}, {8, 3}, {9, 4}, {16, 4}};
  for (const auto& [vcpus, bits] : all) {
    SCOPED_TRACE(vcpus);
    const CpuidTable table = for_vcpu(built("host", host_with_topology()), vcpus - 1, vcpus);
    EXPECT_EQ(find(table, 0x1)->ebx >> 16 & 0xFF, vcpus);
    EXPECT_EQ((find(table, 0x1)->edx >> 28 & 1) != 0, vcpus > 1) << "HTT";
    EXPECT_EQ(find(table, 0xB, 0)->ebx, 1U) << "threads of a core";
    EXPECT_EQ(find(table, 0xB, 0)->eax, 0U);
    EXPECT_EQ(find(table, 0xB, 0)->ecx >> 8, 1U);
    EXPECT_EQ(find(table, 0xB, 1)->ebx, vcpus);
    EXPECT_EQ(find(table, 0xB, 1)->eax, bits);
    EXPECT_EQ(find(table, 0xB, 1)->ecx >> 8, 2U);
    EXPECT_EQ(find(table, 0xB, 2)->ebx, 0U) << "the end";
    EXPECT_EQ(find(table, 0x80000008)->ecx & 0xFF, vcpus - 1);
    EXPECT_EQ(find(table, 0x80000008)->ecx >> 12 & 0xF, bits);
    for (const std::uint32_t cache : {0U, 1U, 2U}) EXPECT_EQ(find(table, 0x4, cache)->eax >> 14 & 0xFFF, 0U) << cache;
    EXPECT_EQ(find(table, 0x4, 3)->eax >> 14 & 0xFFF, vcpus - 1) << "the last level is shared";
    EXPECT_EQ(find(table, 0x4, 3)->eax >> 26, vcpus - 1);
    EXPECT_EQ(find(table, 0x4, 4)->eax, 0U);
  }
}

TEST(CpuTopology, LeavesThatTheHostLacksAreNotMade) {
  const CpuidTable table = for_vcpu(CpuidTable{vendor("GenuineIntel"), full(0x1)}, 0, 2);
  EXPECT_EQ(table.size(), 2U);
}

TEST(CpuFits, TheSameHostFitsItself) {
  for (const std::string& name : builtin_cpu_template_names()) {
    EXPECT_TRUE(check_cpuid_fits(built(name), rich_host()).ok()) << name;
  }
}

TEST(CpuFits, NamesTheWordAndTheBit) {
  CpuidTable host = rich_host();
  at(host, 0x7).ebx &= ~(1U << 16);  // AVX-512F
  const Status status = check_cpuid_fits(built("host"), host);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(status.error().message().find("bit 16 of CPUID 7.ebx"), std::string::npos) << status.error().message();
}

TEST(CpuFits, EveryGivenBitOfTheHostIsChecked) {
  const CpuidTable guest = built("host");
  for (const std::uint32_t bit : {0U, 12U, 25U}) {
    CpuidTable host = rich_host();
    at(host, 0x1).edx &= ~(1U << bit);
    EXPECT_FALSE(check_cpuid_fits(guest, host).ok()) << bit;
  }
}

TEST(CpuFits, WhatKvmGivesByItselfIsNotAskedOfTheHost) {
  CpuidTable host = rich_host();
  at(host, 0x1).ecx &= ~((1U << 31) | (1U << 24));
  at(host, 0x80000008).ebx &= ~(1U << 2);
  EXPECT_TRUE(check_cpuid_fits(built("pvm"), host).ok());
}

TEST(CpuFits, AnotherVendorIsRefused) {
  CpuidTable host = rich_host();
  host[0] = vendor("AuthenticAMD");
  const Status status = check_cpuid_fits(built("baseline"), host);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message().find("GenuineIntel"), std::string::npos);
  EXPECT_NE(status.error().message().find("AuthenticAMD"), std::string::npos);
}

TEST(CpuFits, AWordTheHostDoesNotReportCountsAsZero) {
  CpuidTable host = rich_host();
  host.erase(std::remove_if(host.begin(), host.end(), [](const auto& one) { return one.function == 0x80000007; }),
             host.end());
  EXPECT_FALSE(check_cpuid_fits(built("host"), host).ok());
}

TEST(CpuidBytes, RoundTrip) {
  const CpuidTable table = built("host");
  const auto back = unpack_cpuid(pack_cpuid(table));
  ASSERT_TRUE(back.ok());
  ASSERT_EQ(back->size(), table.size());
  EXPECT_EQ(std::memcmp(back->data(), table.data(), table.size() * sizeof(kvm_cpuid_entry2)), 0);
}

TEST(CpuidBytes, SizesAtAndPastTheLimits) {
  constexpr std::size_t kEntry = sizeof(kvm_cpuid_entry2);
  const auto code_of = [](std::size_t bytes) {
    const auto table = unpack_cpuid(std::string(bytes, '\1'));
    return table ? std::optional<Errc>() : table.error().code();
  };
  EXPECT_EQ(code_of(0), Errc::kInvalidArgument);
  EXPECT_EQ(code_of(kEntry - 1), Errc::kInvalidArgument);
  EXPECT_EQ(code_of(kEntry), std::nullopt);
  EXPECT_EQ(code_of(kEntry + 1), Errc::kInvalidArgument);
  EXPECT_EQ(code_of(abi::kCpuidEntriesMax * kEntry), std::nullopt);
  EXPECT_EQ(code_of((abi::kCpuidEntriesMax + 1) * kEntry), Errc::kInvalidArgument);
}

}  // namespace
}  // namespace fvmm::vmm
