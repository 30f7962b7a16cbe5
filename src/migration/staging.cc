#include "migration/staging.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/file.h"

namespace fvmm::migration {

Result<std::unique_ptr<StagedPages>> StagedPages::create(const std::filesystem::path& directory,
                                                         std::uint64_t guest_bytes) {
  UniqueFd file(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file) return Error(Errc::kIo, "a nameless file in " + directory.string(), errno);
  if (::ftruncate(file.get(), static_cast<off_t>(guest_bytes)) != 0) return Error(Errc::kIo, "ftruncate", errno);
  return map(std::move(file), guest_bytes, Stays::kNo);
}

Result<std::unique_ptr<StagedPages>> StagedPages::over(int memory_file, std::uint64_t guest_bytes) {
  UniqueFd file(::fcntl(memory_file, F_DUPFD_CLOEXEC, 0));
  if (!file) return Error(Errc::kIo, "duplicate the memory file", errno);
  return map(std::move(file), guest_bytes, Stays::kYes);
}

Result<std::unique_ptr<StagedPages>> StagedPages::map(UniqueFd file, std::uint64_t bytes, Stays stays) {
  void* const base = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (base == MAP_FAILED) return Error(Errc::kResourceExhausted, "map the staging file", errno);
  return std::unique_ptr<StagedPages>(
      new StagedPages(std::move(file), static_cast<const std::byte*>(base), bytes, stays));
}

StagedPages::~StagedPages() {
  ::munmap(const_cast<std::byte*>(base_), bytes_);
}

Status StagedPages::put(memory::PageRange range, const std::byte* bytes) {
  FVMM_CHECK(range.first + range.count <= bytes_ / kPageBytes, "pages of the guest");
  const std::uint64_t at = held_pages_.size() * kPageBytes;
  if (at + range.count * kPageBytes > held_bytes_.size()) {
    FVMM_TRY(settle());  // what is held is older
    return store(range, bytes);
  }
  std::memcpy(held_bytes_.data() + at, bytes, range.count * kPageBytes);
  for (std::uint64_t i = 0; i < range.count; ++i) held_pages_.push_back(range.first + i);
  return {};
}

Status StagedPages::reserve(std::uint64_t pages) {
  FVMM_TRY(settle());
  if (pages * kPageBytes > kStagedHeldMax) {
    return Error(
        Errc::kResourceExhausted,
        fmt::format("the guest dirties {} between two looks, more than a pause may take: use the engine cow or stop",
                    format_bytes(pages * kPageBytes)));
  }
  held_bytes_.assign(pages * kPageBytes, std::byte{0});  // touched here, not in the pause
  held_pages_.reserve(pages);
  return {};
}

Status StagedPages::settle() {
  for (std::size_t i = 0; i < held_pages_.size(); ++i) {
    FVMM_TRY(store({held_pages_[i], 1}, held_bytes_.data() + i * kPageBytes));
  }
  held_pages_.clear();
  held_bytes_.clear();
  return {};
}

Status StagedPages::store(memory::PageRange range, const std::byte* bytes) {
  const std::uint64_t length = range.count * kPageBytes;
  FVMM_TRY(write_all(file_.get(), {bytes, length}, range.first * kPageBytes), "captured pages, in the store");
  if (stays_ == Stays::kNo) return {};
  unflushed_bytes_ += length;
  if (unflushed_bytes_ < kStagedWritebackBytes) return {};
  unflushed_bytes_ = 0;
  // Only a start, and only a hint: its failure shows in the fsync that counts. Length 0: from 0 to the end.
  (void)::sync_file_range(file_.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
  return {};
}

std::span<const std::byte> StagedPages::pages(memory::PageRange range) const {
  FVMM_CHECK(range.first + range.count <= bytes_ / kPageBytes, "pages of the guest");
  FVMM_CHECK(held_pages_.empty(), "settled before it is read");
  return {base_ + range.first * kPageBytes, range.count * kPageBytes};
}

}  // namespace fvmm::migration
