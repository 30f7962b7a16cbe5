// Captured pages on their way into the local store: a nameless, sparse file of the guest's size.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "migration/capture.h"

namespace fvmm::migration {

inline constexpr std::uint64_t kStagedHeldMax = 256 * kMiB;  // of pages of one pause, in memory

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
  /// Memory for so many pages: allocating them in the file would make the pause wait for the filesystem.
  /// kResourceExhausted past kStagedHeldMax.
  Status reserve(std::uint64_t pages) override;
  /// Moves what is held in memory into the file. Before pages().
  Status settle();
  [[nodiscard]] std::span<const std::byte> pages(memory::PageRange range) const;

 private:
  Status store(memory::PageRange range, const std::byte* bytes);
  StagedPages(int file, std::byte* base, std::uint64_t bytes) : file_(file), base_(base), bytes_(bytes) {}
  const int file_;
  std::byte* const base_;
  const std::uint64_t bytes_;
  std::vector<std::byte> held_bytes_;          // room that reserve() made
  std::vector<memory::PageIndex> held_pages_;  // one for each page in it, in the order of put()
};

}  // namespace fvmm::migration
