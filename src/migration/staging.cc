#include "migration/staging.h"

#include <fcntl.h>
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
  return {base_ + range.first * kPageBytes, range.count * kPageBytes};
}

}  // namespace fvmm::migration
