#include "vmm/cpuid.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "vmm/cpuid_names.h"

namespace fvmm::vmm {
namespace {

enum Register { kEax, kEbx, kEcx, kEdx };

std::uint32_t& reg(kvm_cpuid_entry2& entry, Register which) {
  switch (which) {
    case kEax:
      return entry.eax;
    case kEbx:
      return entry.ebx;
    case kEcx:
      return entry.ecx;
    case kEdx:
      break;
  }
  return entry.edx;
}

struct FeatureWord {
  std::uint32_t function;
  std::uint32_t index;
  Register which;
  std::string_view name;
  std::uint32_t baseline;  // bits that the baseline template keeps
  std::uint32_t ours = 0;  // bits that we give whatever the host reports
};

// Words made of feature bits (Intel SDM vol. 2A and AMD APM vol. 3, CPUID; Linux Documentation/virt/kvm/x86/cpuid.rst
// for 0x40000001).
constexpr std::array<FeatureWord, 13> kFeatureWords{{
    // sse3 pclmul ssse3 cx16 pcid sse4.1 sse4.2 x2apic popcnt tsc-deadline aes xsave rdrand hypervisor
    {0x1, 0, kEcx, "1.ecx", 0xC7BA2203U, (1U << 31) | (1U << 24)},
    {0x1, 0, kEdx, "1.edx", 0xFFFFFFFFU},
    {0x7, 0, kEbx, "7.ebx", 0x00000201U | (1U << 7)},  // fsgsbase smep erms
    {0x7, 0, kEcx, "7.ecx", 0x0U},
    {0x7, 0, kEdx, "7.edx", 0xAC000400U},  // md_clear, speculation controls
    {0x7, 1, kEax, "7.1.eax", 0x0U},
    {0xD, 0, kEax, "0xd.eax", 0x3U},                // x87 and SSE state
    {0xD, 1, kEax, "0xd.1.eax", 0x1U},              // xsaveopt
    {0x80000001, 0, kEcx, "0x80000001.ecx", 0x1U},  // lahf
    {0x80000001, 0, kEdx, "0x80000001.edx", 0x2993FBFFU},
    {0x80000007, 0, kEdx, "0x80000007.edx", 0x100U},                // invariant TSC
    {0x80000008, 0, kEbx, "0x80000008.ebx", 0x0100D000U, 1U << 2},  // AMD's speculation controls
    {0x40000001, 0, kEax, "0x40000001.eax", 0x01000009U},           // kvmclock and its stable bit
}};

constexpr std::uint32_t kBasicLeafMax = 0xD;            // of the baseline template
constexpr std::uint32_t kExtendedLeafMax = 0x80000008;  // likewise
constexpr std::uint32_t kXsaveBytesOfSse = 576;         // legacy area and header

kvm_cpuid_entry2* find(CpuidTable& table, std::uint32_t function, std::uint32_t index) {
  const auto at = std::find_if(table.begin(), table.end(), [&](const kvm_cpuid_entry2& entry) {
    return entry.function == function && entry.index == index;
  });
  return at == table.end() ? nullptr : &*at;
}

std::uint32_t value(const CpuidTable& table, const FeatureWord& word) {
  for (kvm_cpuid_entry2 entry : table) {
    if (entry.function == word.function && entry.index == word.index) return reg(entry, word.which);
  }
  return 0;
}

// Leaves that describe what a plain CPU of 2012 has not, or that differ from host to host without a feature bit.
bool beyond_baseline(const kvm_cpuid_entry2& entry) {
  if (entry.function >= 0x40000000 && entry.function < 0x80000000) return false;  // KVM's own
  if (entry.function >= 0x80000000) return entry.function > kExtendedLeafMax;
  if (entry.function > kBasicLeafMax || entry.function == 0xA) return true;  // 0xA: performance counters
  return (entry.function == 0x7 && entry.index > 0) || (entry.function == 0xD && entry.index > 1);
}

void apply_baseline(CpuidTable& table) {
  std::erase_if(table, beyond_baseline);
  for (const FeatureWord& word : kFeatureWords) {
    if (kvm_cpuid_entry2* entry = find(table, word.function, word.index)) reg(*entry, word.which) &= word.baseline;
  }
  if (auto* entry = find(table, 0x0, 0)) entry->eax = std::min(entry->eax, kBasicLeafMax);
  if (auto* entry = find(table, 0x80000000, 0)) entry->eax = std::min(entry->eax, kExtendedLeafMax);
  if (auto* entry = find(table, 0x7, 0)) entry->eax = 0;
  if (auto* entry = find(table, 0xD, 0)) {
    entry->ebx = entry->ecx = kXsaveBytesOfSse;
    entry->edx = 0;
  }
}

// What no template offers, because a saved state does not hold it: nested virtualisation (VMX, SVM) and SGX enclaves.
void remove_unsavable(CpuidTable& table) {
  constexpr std::uint32_t kVmx = 1U << 5;
  constexpr std::uint32_t kSvm = 1U << 2;
  constexpr std::uint32_t kSgx = 1U << 2;
  constexpr std::uint32_t kSgxLaunch = 1U << 30;
  if (auto* entry = find(table, 0x1, 0)) entry->ecx &= ~kVmx;
  if (auto* entry = find(table, 0x80000001, 0)) entry->ecx &= ~kSvm;
  if (auto* entry = find(table, 0x7, 0)) {
    entry->ebx &= ~kSgx;
    entry->ecx &= ~kSgxLaunch;
  }
  std::erase_if(table, [](const kvm_cpuid_entry2& entry) { return entry.function == 0x12; });
}

// What KVM-PVM cannot do for guest code at CPL 0: cmpxchg16b is not emulated, and the hypercalls behind PV unhalt (7),
// async page faults (4, 10, 14), PV TLB flush (9), PV IPI (11) and PV sched-yield (13) hang KVM_RUN.
void apply_pvm(CpuidTable& table) {
  constexpr std::uint32_t kCx16 = 1U << 13;
  constexpr std::uint32_t kPvCalls =
      (1U << 4) | (1U << 7) | (1U << 9) | (1U << 10) | (1U << 11) | (1U << 13) | (1U << 14);
  constexpr std::uint32_t kXsaveErPtr = 1U << 2;  // Linux then needs no fnclex and fild in its FPU restore
  if (auto* entry = find(table, 0x1, 0)) entry->ecx &= ~kCx16;
  if (auto* entry = find(table, 0x40000001, 0)) entry->eax &= ~kPvCalls;
  if (auto* entry = find(table, 0x80000008, 0)) entry->ebx |= kXsaveErPtr;
}

// "GenuineIntel", "AuthenticAMD"; empty without leaf 0. Hosts of two vendors differ in more than feature bits say.
std::string vendor_of(const CpuidTable& table) {
  for (const kvm_cpuid_entry2& entry : table) {
    if (entry.function != 0) continue;
    const std::array<std::uint32_t, 3> words = {entry.ebx, entry.edx, entry.ecx};
    return {reinterpret_cast<const char*>(words.data()), sizeof words};
  }
  return {};
}

// Leaf 0x40000010 tells the guest its TSC and APIC bus frequency in kHz, so it need not calibrate.
void add_timing_leaf(CpuidTable& table, std::uint32_t tsc_khz) {
  constexpr std::uint32_t kApicBusKhz = 1'000'000;  // KVM's in-kernel APIC runs at 1 GHz
  kvm_cpuid_entry2* base = find(table, 0x40000000, 0);
  if (base == nullptr) return;
  base->eax = std::max(base->eax, 0x40000010U);
  kvm_cpuid_entry2 timing{};
  timing.function = 0x40000010;
  timing.eax = tsc_khz;
  timing.ebx = kApicBusKhz;
  if (find(table, 0x40000010, 0) == nullptr) table.push_back(timing);
}

}  // namespace

std::vector<std::string> cpu_template_names() {
  return {"host", "baseline", "pvm"};
}

std::string_view default_cpu_template(const KvmFeatures& features) {
  return features.pvm ? "pvm" : "host";
}

Result<CpuidTable> build_cpuid(std::string_view name, const CpuidTable& supported, std::uint32_t tsc_khz) {
  CpuidTable table = supported;
  remove_unsavable(table);
  if (name == "baseline") {
    apply_baseline(table);
  } else if (name == "pvm") {
    apply_pvm(table);
  } else if (name != "host") {
    return Error(Errc::kInvalidArgument, fmt::format("unknown CPU template \"{}\"; known: host, baseline, pvm", name));
  }
  constexpr std::uint32_t kHypervisor = 1U << 31;
  constexpr std::uint32_t kTscDeadline = 1U << 24;
  if (auto* entry = find(table, 0x1, 0)) entry->ecx |= kHypervisor | kTscDeadline;  // KVM's APIC has the deadline timer
  add_timing_leaf(table, tsc_khz);
  return table;
}

Status check_cpuid_fits(const CpuidTable& guest, const CpuidTable& host) {
  const std::string vendor = vendor_of(guest);
  if (vendor != vendor_of(host)) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("the guest was made for a CPU of {}, this host's is of {}", vendor, vendor_of(host)));
  }
  for (const FeatureWord& word : kFeatureWords) {
    const std::uint32_t missing = value(guest, word) & ~value(host, word) & ~word.ours;
    if (missing == 0) continue;
    const auto bit = static_cast<unsigned>(std::countr_zero(missing));
    const std::string_view name = feature_name(word.name, bit);
    return Error(Errc::kFailedPrecondition,
                 fmt::format("this host's CPU lacks {}{}feature bit {} of CPUID {}, which the guest was given; create "
                             "VMs that move between these hosts with --cpu-template baseline",
                             name, name.empty() ? "" : ", ", bit, word.name));
  }
  return {};
}

std::string pack_cpuid(const CpuidTable& table) {
  return {reinterpret_cast<const char*>(table.data()), table.size() * sizeof(kvm_cpuid_entry2)};
}

Result<CpuidTable> unpack_cpuid(std::string_view bytes) {
  const std::size_t count = bytes.size() / sizeof(kvm_cpuid_entry2);
  if (bytes.size() % sizeof(kvm_cpuid_entry2) != 0 || count == 0 || count > abi::kCpuidEntriesMax) {
    return Error(Errc::kInvalidArgument, fmt::format("a CPUID table of {} bytes", bytes.size()));
  }
  CpuidTable table(count);
  std::memcpy(table.data(), bytes.data(), bytes.size());
  return table;
}

}  // namespace fvmm::vmm
