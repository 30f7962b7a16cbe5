// Which CPU of which package: what each vCPU's CPUID says about its place (Intel SDM vol. 2A, CPUID; AMD APM vol. 3,
// appendix E).
#include <algorithm>
#include <bit>

#include "vmm/cpuid.h"

namespace fvmm::vmm {
namespace {

/// Bits of an APIC id that number the cores of a package.
std::uint32_t core_bits(std::uint32_t vcpus) {
  return static_cast<std::uint32_t>(std::bit_width(vcpus - 1));
}

void set_field(std::uint32_t& word, unsigned shift, std::uint32_t mask, std::uint32_t value) {
  word = (word & ~(mask << shift)) | ((value & mask) << shift);
}

// Levels of leaf 0xB and 0x1F: threads of a core (one), cores of the package (all), then none.
CpuidTable extended_topology(std::uint32_t function, std::uint32_t apic_id, std::uint32_t vcpus) {
  constexpr std::uint32_t kSignificant = 1;  // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
  constexpr std::uint32_t kLevelThread = 1U << 8, kLevelCore = 2U << 8;
  CpuidTable levels(3);
  for (std::uint32_t i = 0; i < levels.size(); ++i) {
    levels[i].function = function;
    levels[i].index = levels[i].ecx = i;
    levels[i].flags = kSignificant;
    levels[i].edx = apic_id;
  }
  levels[0].ebx = 1;
  levels[0].ecx |= kLevelThread;
  levels[1].eax = core_bits(vcpus);
  levels[1].ebx = vcpus;
  levels[1].ecx |= kLevelCore;
  return levels;
}

void place(kvm_cpuid_entry2& entry, std::uint32_t apic_id, std::uint32_t vcpus) {
  constexpr std::uint32_t kHtt = 1U << 28;
  switch (entry.function) {
    case 0x1:
      set_field(entry.ebx, 16, 0xFF, vcpus);
      set_field(entry.ebx, 24, 0xFF, apic_id);
      entry.edx = vcpus > 1 ? entry.edx | kHtt : entry.edx & ~kHtt;
      break;
    case 0x4: {  // a cache of level 3 belongs to all, the others to one
      if ((entry.eax & 0x1F) == 0) break;
      const bool shared = (entry.eax >> 5 & 7) >= 3;
      set_field(entry.eax, 14, 0xFFF, shared ? vcpus - 1 : 0);
      set_field(entry.eax, 26, 0x3F, vcpus - 1);
      break;
    }
    case 0x80000008:
      set_field(entry.ecx, 0, 0xFF, vcpus - 1);
      set_field(entry.ecx, 12, 0xF, core_bits(vcpus));
      break;
    case 0x8000001D: {
      if ((entry.eax & 0x1F) == 0) break;
      const bool shared = (entry.eax >> 5 & 7) >= 3;
      set_field(entry.eax, 14, 0xFFF, shared ? vcpus - 1 : 0);
      break;
    }
    case 0x8000001E:
      entry.eax = apic_id;
      entry.ebx = apic_id & 0xFF;  // core id, one thread a core
      entry.ecx = 0;               // one node
      break;
    default:
      break;
  }
}

}  // namespace

CpuidTable for_vcpu(CpuidTable table, std::uint32_t apic_id, std::uint32_t vcpus) {
  for (kvm_cpuid_entry2& entry : table) place(entry, apic_id, vcpus);
  for (const std::uint32_t function : {0xBU, 0x1FU}) {
    const auto of_it = [function](const kvm_cpuid_entry2& entry) { return entry.function == function; };
    if (std::none_of(table.begin(), table.end(), of_it)) continue;
    std::erase_if(table, of_it);
    const CpuidTable levels = extended_topology(function, apic_id, vcpus);
    table.insert(table.end(), levels.begin(), levels.end());
  }
  return table;
}

}  // namespace fvmm::vmm
