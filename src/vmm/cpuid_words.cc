#include "vmm/cpuid_words.h"

#include <algorithm>
#include <array>
#include <utility>

namespace fvmm::vmm {
namespace {

using Entry = kvm_cpuid_entry2;
constexpr std::uint32_t kHypervisor = 1U << 31;
constexpr std::uint32_t kTscDeadline = 1U << 24;
constexpr std::uint32_t kXsaveErPtr = 1U << 2;

// Intel SDM vol. 2A and AMD APM vol. 3, CPUID; Linux Documentation/virt/kvm/x86/cpuid.rst for 0x40000001.
constexpr std::array<FeatureWord, 13> kWords{{
    {0x1, 0, &Entry::ecx, "1.ecx", kHypervisor | kTscDeadline},
    {0x1, 0, &Entry::edx, "1.edx"},
    {0x7, 0, &Entry::ebx, "7.ebx"},
    {0x7, 0, &Entry::ecx, "7.ecx"},
    {0x7, 0, &Entry::edx, "7.edx"},
    {0x7, 1, &Entry::eax, "7.1.eax"},
    {0xD, 0, &Entry::eax, "0xd.eax"},
    {0xD, 1, &Entry::eax, "0xd.1.eax"},
    {0x80000001, 0, &Entry::ecx, "0x80000001.ecx"},
    {0x80000001, 0, &Entry::edx, "0x80000001.edx"},
    {0x80000007, 0, &Entry::edx, "0x80000007.edx"},
    {0x80000008, 0, &Entry::ebx, "0x80000008.ebx", kXsaveErPtr},
    {0x40000001, 0, &Entry::eax, "0x40000001.eax"},
}};

}  // namespace

std::span<const FeatureWord> feature_words() {
  return kWords;
}

const FeatureWord* find_word(std::string_view name) {
  const auto at = std::ranges::find(kWords, name, &FeatureWord::name);
  return at == kWords.end() ? nullptr : &*at;
}

const kvm_cpuid_entry2* find_entry(const CpuidTable& table, std::uint32_t function, std::uint32_t index) {
  const auto at = std::ranges::find_if(
      table, [&](const Entry& entry) { return entry.function == function && entry.index == index; });
  return at == table.end() ? nullptr : &*at;
}

kvm_cpuid_entry2* find_entry(CpuidTable& table, std::uint32_t function, std::uint32_t index) {
  return const_cast<Entry*>(find_entry(std::as_const(table), function, index));
}

std::uint32_t word_bits(const CpuidTable& table, const FeatureWord& word) {
  const Entry* entry = find_entry(table, word.function, word.index);
  return entry == nullptr ? 0 : entry->*word.reg;
}

void set_word_bits(CpuidTable& table, const FeatureWord& word, std::uint32_t bits) {
  if (Entry* entry = find_entry(table, word.function, word.index)) entry->*word.reg = bits;
}

}  // namespace fvmm::vmm
