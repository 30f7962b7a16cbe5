// FVMM_CHECK: a broken promise of our own. Always on; prints where, and aborts the process (one VM, never the host).
#pragma once

#include <string_view>

namespace fvmm::detail {
[[noreturn]] void check_failed(std::string_view condition, std::string_view file, int line, std::string_view why);
}

#define FVMM_CHECK(condition, why)                                                                            \
  do {                                                                                                        \
    if (__builtin_expect(!(condition), 0)) ::fvmm::detail::check_failed(#condition, __FILE__, __LINE__, why); \
  } while (false)
