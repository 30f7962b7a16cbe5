// Captured pages on their way into the local store: a nameless, sparse file of the guest's size.
#pragma once

#include <filesystem>
#include <memory>

#include "base/result.h"
#include "migration/capture.h"

namespace fvmm::migration {

/// A PageSink that holds the newest copy of each page, in page cache that the kernel may write out: a capture needs
/// disk for what it captures, and no memory that could run out. Owner: one thread.
class StagedPages final : public PageSink {
 public:
  /// @param directory    on a filesystem with O_TMPFILE (ext4, xfs, btrfs, tmpfs); nothing is left there, whatever
  /// happens
  /// @param guest_bytes  size of guest RAM
  static Result<std::unique_ptr<StagedPages>> create(const std::filesystem::path& directory, std::uint64_t guest_bytes);
  ~StagedPages() override;
  StagedPages(const StagedPages&) = delete;
  StagedPages& operator=(const StagedPages&) = delete;
  StagedPages(StagedPages&&) = delete;
  StagedPages& operator=(StagedPages&&) = delete;

  /// kResourceExhausted when the disk is full: found out by allocating before the copy, since a store into a mapping
  /// would be a SIGBUS.
  Status put(memory::PageRange range, const std::byte* bytes) override;
  /// Never waits: what is left for the pause is allocated then.
  Status reserve(std::uint64_t) override { return {}; }
  [[nodiscard]] std::span<const std::byte> pages(memory::PageRange range) const;

 private:
  StagedPages(int file, std::byte* base, std::uint64_t bytes) : file_(file), base_(base), bytes_(bytes) {}
  const int file_;
  std::byte* const base_;
  const std::uint64_t bytes_;
};

}  // namespace fvmm::migration
