#pragma once

#include <string_view>

namespace fvmm::vmm {

/// What people call a feature bit, as /proc/cpuinfo does; empty when it has no name here.
/// @param word  "1.ecx", "7.ebx", ... as the feature words of cpuid.cc are called
/// @param bit   0 to 31
std::string_view feature_name(std::string_view word, unsigned bit);

}  // namespace fvmm::vmm
