// Which pages of a private mapping this process has a copy of its own of: what was written, without any log.
#pragma once

#include <cstddef>
#include <span>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/dirty.h"

namespace fvmm::memory {

/// Reads this process's page tables: by PAGEMAP_SCAN (Linux 6.7), else page by page from /proc/self/pagemap.
///
/// A page counts as private when it is present or swapped, and neither a page of a file (or of shared memory) nor the
/// zero page. It over-reports and never under-reports: a huge page counts whole, a page that was read into place or
/// populated counts although nobody has changed it, and /proc/self/pagemap cannot tell the zero page (anonymous memory
/// that was only read) from a private one. Thread: any. Cost: 7 ms per GiB of mapped memory by PAGEMAP_SCAN.
class PrivatePages {
 public:
  enum class By { kScan, kPagemap };
  /// The best that this kernel has. kPermissionDenied or kIo when /proc/self/pagemap cannot be opened.
  static Result<PrivatePages> open();
  /// One of the two. kUnimplemented when this kernel lacks PAGEMAP_SCAN.
  static Result<PrivatePages> open(By by);

  /// Sets the bits of the private pages of `mapping`, whose first byte is page `first` of `out`; others stay as they
  /// are. FVMM_CHECKs that `mapping` is whole, aligned pages inside `out`. kIo: what was found so far is set.
  Status find(std::span<const std::byte> mapping, PageIndex first, Bitmap& out) const;
  [[nodiscard]] By by() const { return by_; }

 private:
  PrivatePages(UniqueFd pagemap, By by) : pagemap_(std::move(pagemap)), by_(by) {}
  Status scan(std::uint64_t start, std::uint64_t end, PageIndex first, Bitmap& out) const;
  Status read(std::uint64_t start, std::uint64_t end, PageIndex first, Bitmap& out) const;

  UniqueFd pagemap_;  // of this process, whoever calls
  By by_;
};

}  // namespace fvmm::memory
