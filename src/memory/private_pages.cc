#include "memory/private_pages.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

#include "base/check.h"
#include "base/units.h"

namespace fvmm::memory {
namespace {

// PAGEMAP_SCAN as Linux 6.7 has it (include/uapi/linux/fs.h), which the headers of Debian 12 lack.
struct PageRegion {
  std::uint64_t start;  // addresses
  std::uint64_t end;
  std::uint64_t categories;
};
struct ScanArguments {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;  // out: how far the walk came
  std::uint64_t vec;
  std::uint64_t vec_len;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};
static_assert(sizeof(PageRegion) == 24 && sizeof(ScanArguments) == 96);
static_assert(offsetof(ScanArguments, walk_end) == 32 && offsetof(ScanArguments, return_mask) == 88);
constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanArguments);
static_assert(kPagemapScan == 0xC0606610);
constexpr std::uint64_t kIsFile = 1 << 2;
constexpr std::uint64_t kIsPresent = 1 << 3;
constexpr std::uint64_t kIsSwapped = 1 << 4;
constexpr std::uint64_t kIsZeroPage = 1 << 5;

// One entry of /proc/PID/pagemap a page (Documentation/admin-guide/mm/pagemap.rst).
constexpr std::uint64_t kEntryFileOrShared = 1ULL << 61;
constexpr std::uint64_t kEntrySwapped = 1ULL << 62;
constexpr std::uint64_t kEntryPresent = 1ULL << 63;

constexpr std::size_t kRegionsMax = 1024;  // of one ioctl, which goes on where it stopped
constexpr std::size_t kEntriesMax = 8192;  // of one read: 32 MiB of memory

ScanArguments arguments_for(std::uint64_t start, std::uint64_t end, std::span<PageRegion> regions) {
  ScanArguments wanted{};
  wanted.size = sizeof wanted;
  wanted.start = start;
  wanted.end = end;
  wanted.vec = reinterpret_cast<std::uintptr_t>(regions.data());
  wanted.vec_len = regions.size();
  wanted.category_inverted = kIsFile | kIsZeroPage;
  wanted.category_mask = kIsFile | kIsZeroPage;
  wanted.category_anyof_mask = kIsPresent | kIsSwapped;
  wanted.return_mask = kIsPresent;
  return wanted;
}

int scan_once(int pagemap, ScanArguments& wanted) {
  for (;;) {
    const int answer = ::ioctl(pagemap, kPagemapScan, &wanted);
    if (answer >= 0 || errno != EINTR) return answer;
  }
}

/// Whether this kernel has PAGEMAP_SCAN: asked about one page, of this function's own stack.
bool kernel_scans(int pagemap) {
  PageRegion region{};
  const std::uint64_t page = reinterpret_cast<std::uintptr_t>(&region) / kPageBytes * kPageBytes;
  ScanArguments wanted = arguments_for(page, page + kPageBytes, {&region, 1});
  return scan_once(pagemap, wanted) >= 0;
}

}  // namespace

Result<PrivatePages> PrivatePages::open() {
  auto best = open(By::kScan);
  return best || best.error().code() != Errc::kUnimplemented ? std::move(best) : open(By::kPagemap);
}

Result<PrivatePages> PrivatePages::open(By by) {
  UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap) {
    const bool denied = errno == EACCES || errno == EPERM;
    return Error(denied ? Errc::kPermissionDenied : Errc::kIo,
                 "open /proc/self/pagemap, which finds private pages (CONFIG_PROC_PAGE_MONITOR)", errno);
  }
  if (by == By::kScan && !kernel_scans(pagemap.get())) {
    return Error(Errc::kUnimplemented, "this kernel has no PAGEMAP_SCAN (Linux 6.7 has)", errno);
  }
  return PrivatePages(std::move(pagemap), by);
}

Status PrivatePages::find(std::span<const std::byte> mapping, PageIndex first, Bitmap& out) const {
  const std::uint64_t start = reinterpret_cast<std::uintptr_t>(mapping.data());
  FVMM_CHECK(start % kPageBytes == 0 && mapping.size() % kPageBytes == 0, "whole pages are looked at");
  FVMM_CHECK(first <= out.pages() && mapping.size() / kPageBytes <= out.pages() - first, "pages outside the bitmap");
  if (mapping.empty()) return {};
  const std::uint64_t end = start + mapping.size();
  return by_ == By::kScan ? scan(start, end, first, out) : read(start, end, first, out);
}

Status PrivatePages::scan(std::uint64_t start, std::uint64_t end, PageIndex first, Bitmap& out) const {
  std::array<PageRegion, kRegionsMax> regions;
  for (std::uint64_t at = start; at < end;) {
    ScanArguments wanted = arguments_for(at, end, regions);
    const int found = scan_once(pagemap_.get(), wanted);
    if (found < 0) return Error(Errc::kIo, "PAGEMAP_SCAN of guest RAM", errno);
    for (const PageRegion& region : std::span(regions).first(static_cast<std::size_t>(found))) {
      FVMM_CHECK(region.start >= at && region.end > region.start && region.end <= end, "a region of what was asked");
      out.set_range({first + (region.start - start) / kPageBytes, (region.end - region.start) / kPageBytes});
    }
    FVMM_CHECK(wanted.walk_end > at && wanted.walk_end <= end, "the walk goes on");
    at = wanted.walk_end;
  }
  return {};
}

Status PrivatePages::read(std::uint64_t start, std::uint64_t end, PageIndex first, Bitmap& out) const {
  std::vector<std::uint64_t> entries(std::min<std::uint64_t>(kEntriesMax, (end - start) / kPageBytes));
  for (std::uint64_t at = start; at < end;) {
    const std::size_t wanted = std::min<std::uint64_t>(entries.size(), (end - at) / kPageBytes) * sizeof(entries[0]);
    const auto offset = static_cast<off_t>(at / kPageBytes * sizeof(entries[0]));
    const ssize_t got = ::pread(pagemap_.get(), entries.data(), wanted, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < static_cast<ssize_t>(sizeof(entries[0]))) {
      return Error(Errc::kIo, "read /proc/self/pagemap", got < 0 ? errno : 0);
    }
    const std::size_t count = static_cast<std::size_t>(got) / sizeof(entries[0]);
    for (std::size_t i = 0; i < count; ++i) {
      const bool there = (entries[i] & (kEntryPresent | kEntrySwapped)) != 0;
      if (there && (entries[i] & kEntryFileOrShared) == 0) out.set(first + (at - start) / kPageBytes + i);
    }
    at += count * kPageBytes;
  }
  return {};
}

}  // namespace fvmm::memory
