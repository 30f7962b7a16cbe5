// Options that are words with commas between: "path=/a,shared".
#pragma once

#include <functional>
#include <string_view>

#include "base/result.h"

namespace fvmm::cli {

/// Calls for each word, in order, empty ones too, until one is refused.
inline Status for_each_word(std::string_view text, const std::function<Status(std::string_view)>& take) {
  for (;;) {
    const auto comma = text.find(',');
    FVMM_TRY(take(text.substr(0, comma)));
    if (comma == std::string_view::npos) return {};
    text.remove_prefix(comma + 1);
  }
}

}  // namespace fvmm::cli
