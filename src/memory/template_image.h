// The memory of an opened template: a base file and runs of pages of its deltas over it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/dirty.h"
#include "memory/layout.h"

namespace fvmm::memory {

/// Consecutive pages that lie one after another in one delta's `pages` file.
struct OverlayRun {
  PageRange pages;
  std::uint32_t layer;      // index of the delta, 0 lies directly on the base
  std::uint64_t file_page;  // where the first one lies in `pages`, in pages
  bool operator==(const OverlayRun&) const = default;
};

/// `upper` over `lower`: where both have a page, upper's counts. Both ascending without overlap, and so is the result.
std::vector<OverlayRun> overlay(std::span<const OverlayRun> upper, std::span<const OverlayRun> lower);

/// Descriptors and runs of one resolved chain. Immutable; shared by whoever opened it and whoever mapped it, so that
/// the files stay whatever happens to their names. Thread: any.
class TemplateImage {
 public:
  /// @param layers  `pages` files, the one on the base first
  /// @param runs    of all layers, resolved
  TemplateImage(UniqueFd base, std::vector<UniqueFd> layers, std::vector<OverlayRun> runs, std::uint64_t memory_bytes)
      : base_(std::move(base)), layers_(std::move(layers)), runs_(std::move(runs)), memory_bytes_(memory_bytes) {}

  [[nodiscard]] int base() const { return base_.get(); }  // read-only, memory_bytes long
  [[nodiscard]] std::size_t layers() const { return layers_.size(); }
  [[nodiscard]] int layer(std::size_t index) const { return layers_[index].get(); }
  [[nodiscard]] std::span<const OverlayRun> runs() const { return runs_; }
  [[nodiscard]] std::uint64_t memory_bytes() const { return memory_bytes_; }
  /// The content of these pages. FVMM_CHECKs the range and that `out` is as long. Errors: kIo, kDataLoss.
  Status read_pages(PageRange range, std::span<std::byte> out) const;
  /// Pages that may hold anything but zeros, ascending: data of the base and every run of the deltas. For a whole copy.
  [[nodiscard]] Result<std::vector<PageRange>> data_ranges() const;

 private:
  UniqueFd base_;
  std::vector<UniqueFd> layers_;
  std::vector<OverlayRun> runs_;
  std::uint64_t memory_bytes_;
};

}  // namespace fvmm::memory
