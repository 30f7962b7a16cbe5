// What tests with real guests share: the skip rule, the guests' paths, and waiting for what a guest prints.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

/// Skips with a reason where there is no usable /dev/kvm; fails instead when FVMM_REQUIRE_KVM=1.
#define FVMM_NEEDS_KVM()                                              \
  do {                                                                \
    if (::access("/dev/kvm", R_OK | W_OK) != 0) {                     \
      const char* const required = std::getenv("FVMM_REQUIRE_KVM");   \
      if (required != nullptr && std::string_view(required) == "1") { \
        FAIL() << "/dev/kvm is not usable, and FVMM_REQUIRE_KVM=1";   \
      }                                                               \
      GTEST_SKIP() << "/dev/kvm is not usable";                       \
    }                                                                 \
  } while (false)

namespace fvmm::test {

inline std::string guest(std::string_view name) {
  return std::string(FVMM_GUESTS_DIR) + "/" + std::string(name);
}

}  // namespace fvmm::test
