#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <limits>
#include <ostream>

namespace fvmm::cli {
namespace {
constexpr std::uint64_t kBarCells = 30;
}

Progress::Progress(const Streams& streams) : streams_(streams), terminal_(::isatty(streams.err_fd) == 1) {}

void Progress::show(const std::string& text, std::uint64_t done, std::uint64_t total) {
  if (text == last_) return;
  last_ = text;
  if (!terminal_) {
    streams_.err << text << '\n';
    return;
  }
  std::string bar;
  if (total > 0) {
    const auto part = static_cast<double>(std::min(done, total)) / static_cast<double>(total);
    const auto cells = static_cast<std::uint64_t>(part * static_cast<double>(kBarCells));
    bar = "[" + std::string(cells, '#') + std::string(kBarCells - cells, '.') + "] ";
  }
  streams_.err << "\r\x1b[K" << bar << text << std::flush;  // carriage return, then erase to the end of the line
}

void Progress::end() {
  if (terminal_ && !last_.empty()) streams_.err << "\r\x1b[K" << std::flush;
  last_.clear();
}

std::uint32_t to_timeout_ms(std::chrono::microseconds timeout) {
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(timeout).count();
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(ms, 1, std::numeric_limits<std::uint32_t>::max()));
}

}  // namespace fvmm::cli
