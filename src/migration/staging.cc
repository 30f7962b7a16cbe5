#include "migration/staging.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/unique_fd.h"

namespace fvmm::migration {

Result<std::unique_ptr<StagedPages>> StagedPages::create(const std::filesystem::path& directory,
                                                         std::uint64_t guest_bytes) {
  UniqueFd file(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file) return Error(Errc::kIo, "a nameless file in " + directory.string(), errno);
  if (::ftruncate(file.get(), static_cast<off_t>(guest_bytes)) != 0) return Error(Errc::kIo, "ftruncate", errno);
  void* const base = ::mmap(nullptr, guest_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (base == MAP_FAILED) return Error(Errc::kResourceExhausted, "map the staging file", errno);
  return std::unique_ptr<StagedPages>(new StagedPages(file.release(), static_cast<std::byte*>(base), guest_bytes));
}

StagedPages::~StagedPages() {
  ::munmap(base_, bytes_);
  ::close(file_);
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
  const auto offset = static_cast<off_t>(range.first * kPageBytes);
  const std::uint64_t length = range.count * kPageBytes;
  if (::fallocate(file_, 0, offset, static_cast<off_t>(length)) != 0) {
    return Error(errno == ENOSPC || errno == EDQUOT ? Errc::kResourceExhausted : Errc::kIo,
                 "room for captured pages in the store", errno);
  }
  std::memcpy(base_ + offset, bytes, length);
  return {};
}

std::span<const std::byte> StagedPages::pages(memory::PageRange range) const {
  FVMM_CHECK(range.first + range.count <= bytes_ / kPageBytes, "pages of the guest");
  FVMM_CHECK(held_pages_.empty(), "settled before it is read");
  return {base_ + range.first * kPageBytes, range.count * kPageBytes};
}

}  // namespace fvmm::migration
