#include "base/check.h"

#include <spdlog/spdlog.h>

#include <cstdlib>

namespace fvmm::detail {

void check_failed(std::string_view condition, std::string_view file, int line, std::string_view why) {
  spdlog::critical("check failed: {} ({}) at {}:{}", condition, why, file, line);
  spdlog::default_logger_raw()->flush();
  std::abort();
}

}  // namespace fvmm::detail
