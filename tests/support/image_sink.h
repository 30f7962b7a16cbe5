// Where a test's captures go: an image of all memory, and how often each page came.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "memory/digest.h"
#include "migration/capture.h"

namespace fvmm::testing {

/// Keeps the pages of all generations: after each, the whole of memory at its instant. Owner: one thread.
class ImageSink final : public migration::PageSink {
 public:
  explicit ImageSink(std::uint64_t pages) : bytes(pages * kPageBytes), times(pages) {}
  Status put(memory::PageRange range, const std::byte* from) override {
    if (on_put) FVMM_TRY(on_put(range));
    std::memcpy(bytes.data() + range.first * kPageBytes, from, range.count * kPageBytes);
    for (memory::PageIndex page = range.first; page < range.first + range.count; ++page) ++times[page];
    return {};
  }
  Status reserve(std::uint64_t) override { return {}; }
  [[nodiscard]] memory::Digest digest() const { return memory::hash_bytes(bytes); }
  /// Whether just these pages came, each once, since the last call.
  bool came_once(const memory::Bitmap& pages) {
    bool good = true;
    for (memory::PageIndex page = 0; page < times.size(); ++page)
      good = good && times[page] == (pages.test(page) ? 1 : 0);
    std::fill(times.begin(), times.end(), 0);
    return good;
  }

  std::vector<std::byte> bytes;
  std::vector<int> times;
  std::function<Status(memory::PageRange)> on_put;
};

}  // namespace fvmm::testing
