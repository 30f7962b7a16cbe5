// Skips where the host gives no userfaultfd that catches the kernel's own faults.
#pragma once

#include <gtest/gtest.h>

#include <memory>

#include "memory/instant_copy.h"

namespace fvmm::testing {

/// Why write protection cannot be tried on this host; empty when it can.
inline std::string no_userfault() {
  auto memory = std::move(*memory::GuestMemory::reserve(16 * kMiB));
  if (!memory->map_zero()) return "no memory";
  const auto made = memory::WriteProtect::create(*memory);
  return made ? "" : made.error().message();
}

inline std::unique_ptr<memory::InstantCopy> instant_copy_of(memory::GuestMemory& memory,
                                                            std::uint64_t staged_max = memory::kStagedPagesMax) {
  auto protect = memory::WriteProtect::create(memory);
  EXPECT_TRUE(protect.ok()) << protect.error().message();
  return std::move(*memory::InstantCopy::create(std::move(*protect), staged_max));
}

}  // namespace fvmm::testing

#define FVMM_NEEDS_USERFAULT() \
  if (const std::string why_not = ::fvmm::testing::no_userfault(); !why_not.empty()) GTEST_SKIP() << why_not
