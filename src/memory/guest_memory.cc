#include "memory/guest_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <vector>

#include "base/check.h"
#include "memory/template_info.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kHugePageBytes = 2 * kMiB;

Error map_error(std::string_view what, int error) {
  return Error(error == ENOMEM ? Errc::kResourceExhausted : Errc::kIo, std::string(what), error);
}

/// PROT_NONE address space of that size on a 2 MiB boundary: huge pages need host and guest addresses that agree.
Result<std::byte*> reserve_aligned(std::uint64_t bytes) {
  const std::uint64_t padded = bytes + kHugePageBytes;
  void* raw = ::mmap(nullptr, padded, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return map_error("reserve address space for guest RAM", errno);
  auto* start = static_cast<std::byte*>(raw);
  const std::uint64_t misfit = reinterpret_cast<std::uintptr_t>(start) % kHugePageBytes;
  const std::uint64_t head = misfit == 0 ? 0 : kHugePageBytes - misfit;
  const std::uint64_t tail = padded - head - bytes;
  if (head != 0) ::munmap(start, head);
  if (tail != 0) ::munmap(start + head + bytes, tail);
  return start + head;
}

/// Guest RAM never goes into a core dump: it is as large as the VM, and it is the guest's.
Status keep_out_of_dumps(std::byte* base, std::uint64_t bytes) {
  if (::madvise(base, bytes, MADV_DONTDUMP) != 0) return Error(Errc::kIo, "madvise(MADV_DONTDUMP)", errno);
  return {};
}

Status check_size(int file, std::uint64_t ram_bytes) {
  struct stat info {};
  if (::fstat(file, &info) != 0) return Error(Errc::kIo, "stat of the memory file", errno);
  if (static_cast<std::uint64_t>(info.st_size) < ram_bytes) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("memory file has {} bytes, guest RAM {}", info.st_size, ram_bytes));
  }
  return {};
}

}  // namespace

GuestMemory::GuestMemory(Layout layout, std::byte* base)
    : layout_(layout), base_(base), device_marks_(layout.pages()) {}

GuestMemory::~GuestMemory() {
  ::munmap(base_, layout_.ram_bytes());
}

Result<std::unique_ptr<GuestMemory>> GuestMemory::reserve(std::uint64_t ram_bytes) {
  const Layout layout = FVMM_TRY(Layout::of(ram_bytes));
  std::byte* base = FVMM_TRY(reserve_aligned(ram_bytes));
  std::unique_ptr<GuestMemory> memory(new GuestMemory(layout, base));
  FVMM_TRY(keep_out_of_dumps(base, ram_bytes));
  return memory;
}

Status GuestMemory::map_zero() {
  const std::uint64_t bytes = layout_.ram_bytes();
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
  if (::mmap(base_, bytes, PROT_READ | PROT_WRITE, kFlags, -1, 0) == MAP_FAILED) {
    return map_error("map anonymous guest RAM", errno);
  }
  template_.reset();
  // EINVAL: a kernel without transparent huge pages. The guest runs, only slower.
  if (::madvise(base_, bytes, MADV_HUGEPAGE) != 0 && errno != EINVAL) {
    return Error(Errc::kIo, "madvise(MADV_HUGEPAGE)", errno);
  }
  return keep_out_of_dumps(base_, bytes);
}

Status GuestMemory::map_file(int file, std::uint64_t file_page, PageRange pages) {
  constexpr int kFlags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
  void* const at = base_ + pages.first * kPageBytes;
  const auto offset = static_cast<off_t>(file_page * kPageBytes);
  if (::mmap(at, pages.count * kPageBytes, PROT_READ | PROT_WRITE, kFlags, file, offset) != MAP_FAILED) return {};
  return map_error("map the template's memory", errno);
}

namespace {

// The length from which on runs are mapped: so long that no more than kMappableRunsMax are.
std::uint64_t shortest_mapped(std::span<const OverlayRun> runs) {
  if (runs.size() <= kMappableRunsMax) return 0;
  std::vector<std::uint64_t> lengths;
  for (const OverlayRun& run : runs) lengths.push_back(run.pages.count);
  const auto limit = lengths.begin() + static_cast<std::ptrdiff_t>(kMappableRunsMax);
  std::nth_element(lengths.begin(), limit, lengths.end(), std::greater());
  return *limit + 1;
}

}  // namespace

Status GuestMemory::map_template(std::shared_ptr<const TemplateImage> image) {
  if (image->memory_bytes() != layout_.ram_bytes()) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("template has {} bytes, guest RAM {}", image->memory_bytes(), layout_.ram_bytes()));
  }
  FVMM_TRY(check_size(image->base(), layout_.ram_bytes()));
  FVMM_TRY(map_file(image->base(), 0, {.first = 0, .count = layout_.pages()}));
  const std::uint64_t mapped_least = shortest_mapped(image->runs());
  for (const OverlayRun& run : image->runs()) {
    if (run.pages.count >= mapped_least) {
      FVMM_TRY(map_file(image->layer(run.layer), run.file_page, run.pages));
    } else {
      FVMM_TRY(image->read_pages(run.pages, pages_for_load(run.pages)), "load the template's delta");
    }
  }
  template_ = std::move(image);
  return keep_out_of_dumps(base_, layout_.ram_bytes());
}

Status GuestMemory::map_private(int file) {
  FVMM_TRY(check_size(file, layout_.ram_bytes()));
  UniqueFd kept(::fcntl(file, F_DUPFD_CLOEXEC, 0));
  if (!kept) return Error(Errc::kIo, "duplicate the memory file", errno);
  return map_template(std::make_shared<const TemplateImage>(std::move(kept), std::vector<UniqueFd>{},
                                                            std::vector<OverlayRun>{}, layout_.ram_bytes()));
}

Status GuestMemory::read(std::uint64_t guest_address, std::span<std::byte> out) const {
  const auto offset = layout_.ram_offset(guest_address, out.size());
  if (!offset) {
    return Error(Errc::kOutOfRange, fmt::format("read of {} bytes at {:#x} is not RAM", out.size(), guest_address));
  }
  if (!out.empty()) std::memcpy(out.data(), base_ + *offset, out.size());
  return {};
}

Status GuestMemory::write(std::uint64_t guest_address, std::span<const std::byte> in) {
  const auto offset = layout_.ram_offset(guest_address, in.size());
  if (!offset) {
    return Error(Errc::kOutOfRange, fmt::format("write of {} bytes at {:#x} is not RAM", in.size(), guest_address));
  }
  if (in.empty()) return {};
  std::memcpy(base_ + *offset, in.data(), in.size());
  mark(*offset, in.size());  // after the copy: write first, then mark
  return {};
}

void GuestMemory::mark(std::uint64_t ram_offset, std::uint64_t bytes) {
  const PageIndex first = ram_offset / kPageBytes;
  const PageIndex last = (ram_offset + bytes - 1) / kPageBytes;
  device_marks_.set_range({.first = first, .count = last - first + 1});
}

std::optional<std::uint16_t> GuestMemory::load_u16(std::uint64_t guest_address) const {
  FVMM_CHECK(guest_address % sizeof(std::uint16_t) == 0, "a shared word is aligned");
  const auto offset = layout_.ram_offset(guest_address, sizeof(std::uint16_t));
  if (!offset) return std::nullopt;
  return std::atomic_ref(*reinterpret_cast<std::uint16_t*>(base_ + *offset)).load(std::memory_order_acquire);
}

bool GuestMemory::store_u16(std::uint64_t guest_address, std::uint16_t value) {
  FVMM_CHECK(guest_address % sizeof(std::uint16_t) == 0, "a shared word is aligned");
  const auto offset = layout_.ram_offset(guest_address, sizeof(std::uint16_t));
  if (!offset) return false;
  std::atomic_ref(*reinterpret_cast<std::uint16_t*>(base_ + *offset)).store(value, std::memory_order_release);
  mark(*offset, sizeof value);
  return true;
}

std::span<std::byte> GuestMemory::io_view(std::uint64_t guest_address, std::uint64_t bytes) {
  const auto offset = layout_.ram_offset(guest_address, bytes);
  if (!offset) return {};
  return {base_ + *offset, bytes};
}

void GuestMemory::mark_written(std::uint64_t guest_address, std::uint64_t bytes) {
  const auto offset = layout_.ram_offset(guest_address, bytes);
  FVMM_CHECK(offset.has_value(), "only RAM is written");
  if (bytes != 0) mark(*offset, bytes);
}

Status GuestMemory::discard(std::uint64_t guest_address, std::uint64_t bytes) {
  const auto offset = layout_.ram_offset(guest_address, bytes);
  if (!offset || bytes == 0 || *offset % kPageBytes != 0 || bytes % kPageBytes != 0) {
    return Error(Errc::kOutOfRange,
                 fmt::format("discard of {} bytes at {:#x} is not whole pages of RAM", bytes, guest_address));
  }
  const std::lock_guard lock(discard_mutex_);
  Status status;
  const PageIndex end = (*offset + bytes) / kPageBytes;
  for (PageIndex page = *offset / kPageBytes; page < end && status; page += kDiscardPages) {
    status = drop({.first = page, .count = std::min(kDiscardPages, end - page)});
  }
  return status;
}

Status GuestMemory::drop(PageRange pages) {
  const auto place = pages_for_load(pages);
  int error = 0;
  const auto give_back = [&] {
    if (::madvise(place.data(), place.size(), MADV_DONTNEED) != 0) error = errno;
  };
  if (keeper_ != nullptr) {
    keeper_->let_go(pages, give_back);
  } else {
    give_back();
  }
  device_marks_.set_range(pages);  // after it, as a write; also when only part of it was done
  if (error != 0) return Error(Errc::kIo, "madvise(MADV_DONTNEED) of guest RAM", error);
  return {};
}

void GuestMemory::set_keeper(PageKeeper& keeper) {
  const std::lock_guard lock(discard_mutex_);
  keeper_ = &keeper;
}

void GuestMemory::clear_keeper(const PageKeeper& keeper) {
  const std::lock_guard lock(discard_mutex_);
  if (keeper_ == &keeper) keeper_ = nullptr;
}

std::span<const std::byte> GuestMemory::pages(PageRange range) const {
  FVMM_CHECK(range.first <= layout_.pages() && range.count <= layout_.pages() - range.first, "pages outside RAM");
  return {base_ + range.first * kPageBytes, range.count * kPageBytes};
}

std::span<std::byte> GuestMemory::pages_for_load(PageRange range) {
  FVMM_CHECK(range.first <= layout_.pages() && range.count <= layout_.pages() - range.first, "pages outside RAM");
  return {base_ + range.first * kPageBytes, range.count * kPageBytes};
}

void GuestMemory::populate(PageRange range) {
  const auto bytes = pages_for_load(range);
#ifndef MADV_POPULATE_WRITE
  constexpr int MADV_POPULATE_WRITE = 23;
#endif
  (void)::madvise(bytes.data(), bytes.size(), MADV_POPULATE_WRITE);  // what is not populated now faults later
}

Status GuestMemory::template_page(PageIndex page, std::span<std::byte, kPageBytes> out) const {
  FVMM_CHECK(page < layout_.pages(), "page outside RAM");
  if (!template_) {
    std::fill(out.begin(), out.end(), std::byte{0});
    return {};
  }
  return template_->read_pages({.first = page, .count = 1}, out);
}

}  // namespace fvmm::memory
