#include "vmm/cpuid.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "vmm/cpu_template.h"
#include "vmm/cpuid_names.h"

namespace fvmm::vmm {
namespace {

// What no template offers, because a saved state does not hold it: nested virtualisation (VMX, SVM) and SGX enclaves.
void remove_unsavable(CpuidTable& table) {
  constexpr std::uint32_t kVmx = 1U << 5;
  constexpr std::uint32_t kSvm = 1U << 2;
  constexpr std::uint32_t kSgx = 1U << 2;
  constexpr std::uint32_t kSgxLaunch = 1U << 30;
  if (auto* entry = find_entry(table, 0x1)) entry->ecx &= ~kVmx;
  if (auto* entry = find_entry(table, 0x80000001)) entry->ecx &= ~kSvm;
  if (auto* entry = find_entry(table, 0x7)) {
    entry->ebx &= ~kSgx;
    entry->ecx &= ~kSgxLaunch;
  }
  std::erase_if(table, [](const kvm_cpuid_entry2& entry) { return entry.function == 0x12; });
}

// "GenuineIntel", "AuthenticAMD"; empty without leaf 0. Hosts of two vendors differ in more than feature bits say.
std::string vendor_of(const CpuidTable& table) {
  const kvm_cpuid_entry2* entry = find_entry(table, 0);
  if (entry == nullptr) return {};
  const std::array<std::uint32_t, 3> words = {entry->ebx, entry->edx, entry->ecx};
  return {reinterpret_cast<const char*>(words.data()), sizeof words};
}

// Leaf 0x40000010 tells the guest its TSC and APIC bus frequency in kHz, so it need not calibrate.
void add_timing_leaf(CpuidTable& table, std::uint32_t tsc_khz) {
  constexpr std::uint32_t kApicBusKhz = 1'000'000;  // KVM's in-kernel APIC runs at 1 GHz
  kvm_cpuid_entry2* base = find_entry(table, 0x40000000);
  if (base == nullptr) return;
  base->eax = std::max(base->eax, 0x40000010U);
  kvm_cpuid_entry2 timing{};
  timing.function = 0x40000010;
  timing.eax = tsc_khz;
  timing.ebx = kApicBusKhz;
  if (find_entry(table, 0x40000010) == nullptr) table.push_back(timing);
}

}  // namespace

std::string_view default_cpu_template(const KvmFeatures& features) {
  return features.pvm ? "pvm" : "host";
}

Result<v1::CpuTemplate> cpu_template_of(const v1::VmConfig& config, const KvmFeatures& features) {
  if (config.has_cpu()) {
    FVMM_TRY(check_cpu_template(config.cpu()), "CPU template " + config.cpu().name());
    return config.cpu();
  }
  return builtin_cpu_template(config.cpu_template().empty() ? default_cpu_template(features)
                                                            : std::string_view(config.cpu_template()));
}

Result<CpuidTable> build_cpuid(const v1::CpuTemplate& cpu, const CpuidTable& supported, std::uint32_t tsc_khz) {
  CpuidTable table = supported;
  remove_unsavable(table);
  FVMM_TRY(apply_cpu_template(cpu, table));
  constexpr std::uint32_t kHypervisor = 1U << 31;
  constexpr std::uint32_t kTscDeadline = 1U << 24;
  if (auto* entry = find_entry(table, 0x1))
    entry->ecx |= kHypervisor | kTscDeadline;  // KVM's APIC has the deadline timer
  add_timing_leaf(table, tsc_khz);
  return table;
}

Result<CpuidTable> build_cpuid(std::string_view builtin, const CpuidTable& supported, std::uint32_t tsc_khz) {
  return build_cpuid(FVMM_TRY(builtin_cpu_template(builtin)), supported, tsc_khz);
}

Status check_cpuid_fits(const CpuidTable& guest, const CpuidTable& host) {
  const std::string vendor = vendor_of(guest);
  if (vendor != vendor_of(host)) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("the guest was made for a CPU of {}, this host's is of {}", vendor, vendor_of(host)));
  }
  for (const FeatureWord& word : feature_words()) {
    const std::uint32_t missing = word_bits(guest, word) & ~word_bits(host, word) & ~word.ours;
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
