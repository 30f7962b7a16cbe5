// What people call a feature bit, as /proc/cpuinfo does ("kvm_" and "xstate_" in front where that has no name).
#pragma once

#include <optional>
#include <string_view>

namespace fvmm::vmm {

/// A bit's name; empty when it has none here.
/// @param word  "1.ecx", "7.ebx", ... as cpuid_words.h calls them
/// @param bit   0 to 31
std::string_view feature_name(std::string_view word, unsigned bit);

struct FeatureBit {
  std::string_view word;
  unsigned bit = 0;
};
/// The bit of that name: each name stands for one.
std::optional<FeatureBit> find_feature(std::string_view name);

}  // namespace fvmm::vmm
