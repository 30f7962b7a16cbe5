#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "cli/cli.h"

namespace fvmm::cli {

/// Progress on standard error: a bar that redraws itself on a terminal, else a line each time it has changed.
class Progress {
 public:
  explicit Progress(const Streams& streams);
  /// `total` 0: not known, no bar.
  void show(const std::string& text, std::uint64_t done, std::uint64_t total);
  void end();  // takes the bar away again

 private:
  const Streams& streams_;
  const bool terminal_;
  std::string last_;
};

/// Milliseconds as requests carry them: rounded up, at least 1, at most what 32 bits hold.
std::uint32_t to_timeout_ms(std::chrono::microseconds timeout);

}  // namespace fvmm::cli
