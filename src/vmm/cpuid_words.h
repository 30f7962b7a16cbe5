// CPUID as words of feature bits, and where in a table each lies.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "vmm/kvm_abi.h"

namespace fvmm::vmm {

using CpuidTable = std::vector<kvm_cpuid_entry2>;

/// One register of one leaf that is made of feature bits.
struct FeatureWord {
  std::uint32_t function;
  std::uint32_t index;
  std::uint32_t kvm_cpuid_entry2::*reg;
  std::string_view name;   // "1.ecx", "0xd.1.eax": leaf, index when not 0, register
  std::uint32_t ours = 0;  // bits that a guest may have whatever its host reports
};

/// All of them: what a destination is checked for, and what a CPU template can name.
std::span<const FeatureWord> feature_words();
/// Null when no word is called that.
const FeatureWord* find_word(std::string_view name);

/// Null when the table has no such entry.
kvm_cpuid_entry2* find_entry(CpuidTable& table, std::uint32_t function, std::uint32_t index = 0);
const kvm_cpuid_entry2* find_entry(const CpuidTable& table, std::uint32_t function, std::uint32_t index = 0);

/// A word's bits; 0 when the table lacks the entry.
std::uint32_t word_bits(const CpuidTable& table, const FeatureWord& word);
/// Nothing happens where the table lacks the entry.
void set_word_bits(CpuidTable& table, const FeatureWord& word, std::uint32_t bits);

}  // namespace fvmm::vmm
