// Captured pages on their way into the local store: a sparse file of the guest's size, nameless or a base's own.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "migration/capture.h"

namespace fvmm::migration {

inline constexpr std::uint64_t kStagedHeldMax = 256 * kMiB;        // of pages of one pause, in memory
inline constexpr std::uint64_t kStagedWritebackBytes = 32 * kMiB;  // of a file that stays, then the disk starts

/// A PageSink that holds the newest copy of each page, in page cache that the kernel may write out: a capture needs
/// disk for what it captures, and no memory that could run out. Owner: one thread.
class StagedPages final : public PageSink {
 public:
  /// @param directory    on a filesystem with O_TMPFILE (ext4, xfs, btrfs, tmpfs); nothing is left there, whatever
  /// happens
  /// @param guest_bytes  size of guest RAM
  static Result<std::unique_ptr<StagedPages>> create(const std::filesystem::path& directory, std::uint64_t guest_bytes);
  /// Over the memory file of a base that is being written (TemplateWriter::capture_file()), which then needs no second
  /// copy of them. The disk is told to start as they come.
  static Result<std::unique_ptr<StagedPages>> over(int memory_file, std::uint64_t guest_bytes);
  ~StagedPages() override;
  StagedPages(const StagedPages&) = delete;
  StagedPages& operator=(const StagedPages&) = delete;
  StagedPages(StagedPages&&) = delete;
  StagedPages& operator=(StagedPages&&) = delete;

  /// kResourceExhausted when the disk is full. Written by pwrite(2): a store into a mapping of a full disk is a SIGBUS.
  Status put(memory::PageRange range, const std::byte* bytes) override;
  /// Memory for so many pages: allocating them in the file would make the pause wait for the filesystem.
  /// kResourceExhausted past kStagedHeldMax.
  Status reserve(std::uint64_t pages) override;
  /// Moves what is held in memory into the file. Before pages().
  Status settle();
  [[nodiscard]] std::span<const std::byte> pages(memory::PageRange range) const;

 private:
  Status store(memory::PageRange range, const std::byte* bytes);
  enum class Stays : std::uint8_t { kNo, kYes };
  static Result<std::unique_ptr<StagedPages>> map(UniqueFd file, std::uint64_t bytes, Stays stays);
  StagedPages(UniqueFd file, const std::byte* base, std::uint64_t bytes, Stays stays)
      : file_(std::move(file)), base_(base), bytes_(bytes), stays_(stays) {}
  const UniqueFd file_;
  const std::byte* const base_;  // all of it, for reading
  const std::uint64_t bytes_;
  const Stays stays_;
  std::uint64_t unflushed_bytes_ = 0;          // of a file that stays: since writeback was last started
  std::vector<std::byte> held_bytes_;          // room that reserve() made
  std::vector<memory::PageIndex> held_pages_;  // one for each page in it, in the order of put()
};

}  // namespace fvmm::migration
