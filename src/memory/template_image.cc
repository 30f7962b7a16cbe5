#include "memory/template_image.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "base/file.h"
#include "memory/template_info.h"

namespace fvmm::memory {
namespace {

PageIndex end_of(const PageRange& range) {
  return range.first + range.count;
}

/// The part of a run within [first, end).
OverlayRun cut(const OverlayRun& run, PageIndex first, PageIndex end) {
  return {.pages = {.first = first, .count = end - first},
          .layer = run.layer,
          .file_page = run.file_page + (first - run.pages.first)};
}

/// Data extents of a file as page ranges; holes are not read.
Result<std::vector<PageRange>> extents_of(int file, std::uint64_t pages) {
  std::vector<PageRange> found;
  PageIndex at = 0;
  while (at < pages) {
    const off_t data = ::lseek(file, static_cast<off_t>(at * kPageBytes), SEEK_DATA);
    if (data < 0 && errno == ENXIO) break;  // lseek(2): only a hole is left
    if (data < 0) return Error(Errc::kIo, "SEEK_DATA in the template", errno);
    const off_t hole = ::lseek(file, data, SEEK_HOLE);
    if (hole < 0) return Error(Errc::kIo, "SEEK_HOLE in the template", errno);
    const PageIndex first = std::max(at, static_cast<std::uint64_t>(data) / kPageBytes);
    const PageIndex end = std::min(pages, (static_cast<std::uint64_t>(hole) + kPageBytes - 1) / kPageBytes);
    if (end > first) found.push_back({.first = first, .count = end - first});
    at = std::max(end, at + 1);
  }
  return found;
}

}  // namespace

std::vector<OverlayRun> overlay(std::span<const OverlayRun> upper, std::span<const OverlayRun> lower) {
  std::vector<OverlayRun> merged;
  merged.reserve(upper.size() + lower.size());
  std::size_t below = 0;
  PageIndex covered = 0;  // pages before it are decided
  const auto take_below = [&](PageIndex end) {
    for (; below < lower.size() && lower[below].pages.first < end; ++below) {
      const PageIndex first = std::max(covered, lower[below].pages.first);
      const PageIndex last = std::min(end, end_of(lower[below].pages));
      if (first < last) merged.push_back(cut(lower[below], first, last));
      if (end_of(lower[below].pages) > end) return;  // its rest may show behind the upper run
    }
  };
  for (const OverlayRun& run : upper) {
    take_below(run.pages.first);
    merged.push_back(run);
    covered = end_of(run.pages);
  }
  take_below(~PageIndex{0});
  return merged;
}

Status TemplateImage::read_pages(PageRange range, std::span<std::byte> out) const {
  const std::uint64_t pages = memory_bytes_ / kPageBytes;
  FVMM_CHECK(range.first <= pages && range.count <= pages - range.first, "pages outside the template");
  FVMM_CHECK(out.size() == range.count * kPageBytes, "the buffer has the length of the pages");
  const PageIndex end = end_of(range);
  PageIndex at = range.first;
  const auto read = [&](int file, std::uint64_t file_page, PageIndex until) -> Status {
    const auto part = out.subspan((at - range.first) * kPageBytes, (until - at) * kPageBytes);
    at = until;
    return read_all(file, part, file_page * kPageBytes);
  };
  auto run = std::partition_point(runs_.begin(), runs_.end(),
                                  [&](const OverlayRun& before) { return end_of(before.pages) <= range.first; });
  while (at < end) {
    const PageIndex next = run == runs_.end() ? end : std::min(end, run->pages.first);
    if (at < next) FVMM_TRY(read(base_.get(), at, next));
    if (at >= end) break;
    FVMM_TRY(read(layer(run->layer), run->file_page + (at - run->pages.first), std::min(end, end_of(run->pages))));
    ++run;
  }
  return {};
}

Result<std::vector<PageRange>> TemplateImage::data_ranges() const {
  const auto base = FVMM_TRY(extents_of(base_.get(), memory_bytes_ / kPageBytes));
  std::vector<OverlayRun> below;
  below.reserve(base.size());
  for (const PageRange& range : base) below.push_back({.pages = range, .layer = 0, .file_page = 0});
  std::vector<PageRange> ranges;
  for (const OverlayRun& run : overlay(runs_, below)) {
    if (!ranges.empty() && end_of(ranges.back()) == run.pages.first) {
      ranges.back().count += run.pages.count;
    } else {
      ranges.push_back(run.pages);
    }
  }
  return ranges;
}

}  // namespace fvmm::memory
