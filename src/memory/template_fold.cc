// A delta becomes a base: staged whole beside it, then exchanged with it in one step. docs/template-format.md.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/file.h"
#include "memory/sparse_copy.h"
#include "memory/template_format.h"
#include "memory/template_rewrite.h"
#include "memory/template_room.h"
#include "memory/template_store.h"

namespace fvmm::memory {
namespace {

namespace fs = std::filesystem;

std::uint64_t pages_in(std::span<const OverlayRun> runs) {
  std::uint64_t pages = 0;
  for (const OverlayRun& run : runs) pages += run.pages.count;
  return pages;
}

/// Copies into the new memory file piece by piece, and looks between them whether it is still wanted.
class PieceCopy {
 public:
  PieceCopy(int to, Holes holes, const Rewriting& how) : to_(to), holes_(holes), how_(how) {}

  Status copy(int from, std::uint64_t from_offset, std::uint64_t to_offset, std::uint64_t bytes) {
    for (std::uint64_t done = 0; done < bytes;) {
      const std::uint64_t piece = std::min(bytes - done, kRewritePieceBytes - open_bytes_);
      FVMM_TRY(copy_sparse(from, from_offset + done, to_, to_offset + done, piece, holes_));
      done += piece;
      open_bytes_ += piece;
      if (open_bytes_ == kRewritePieceBytes) FVMM_TRY(between());
    }
    return {};
  }

 private:
  Status between() {
    open_bytes_ = 0;
    if (how_.stop && how_.stop()) return Error(Errc::kCancelled, "given up");
    // A hint: what is wrong with the disk shows in the fsync that counts. Length 0: from 0 to the end.
    constexpr unsigned kWait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
    if (how_.gentle) (void)::sync_file_range(to_, 0, 0, kWait);
    return {};
  }

  const int to_;
  const Holes holes_;
  const Rewriting& how_;
  std::uint64_t open_bytes_ = 0;  // since the last look, holes included
};

/// The base between the runs, where it was not cloned as a whole, and the runs.
Status copy_pages(const Chain& chain, std::span<const OverlayRun> runs, bool cloned, PieceCopy& out) {
  const int base = chain.layers.back().payload.get();
  const auto copy_base = [&](PageIndex first, PageIndex end) -> Status {
    if (cloned || first == end) return {};
    const std::uint64_t offset = first * kPageBytes;
    return out.copy(base, offset, offset, (end - first) * kPageBytes);
  };
  PageIndex at = 0;
  for (const OverlayRun& run : runs) {
    FVMM_TRY(copy_base(at, run.pages.first), "base");
    const int pages = chain.layers[chain.layers.size() - 2 - run.layer].payload.get();
    FVMM_TRY(out.copy(pages, run.file_page * kPageBytes, run.pages.first * kPageBytes, run.pages.count * kPageBytes),
             "pages");
    at = run.pages.first + run.pages.count;
  }
  return copy_base(at, chain.layers.front().info.memory_bytes / kPageBytes);
}

/// @param pages  non-zero ones of the result: what it may need on disk
Status write_memory(const Chain& chain, std::span<const OverlayRun> runs, std::uint64_t pages,
                    const StagingDirectory& staging, const fs::path& store, const Rewriting& how) {
  const TemplateInfo& info = chain.layers.front().info;
  seal_step("write-memory");
  const UniqueFd memory = FVMM_TRY(staging.create_file(kMemoryFile));
  const bool cloned = clone_file(chain.layers.back().payload.get(), memory.get());
  FVMM_TRY(check_room(store, info.name, (cloned ? pages_in(runs) : pages) * kPageBytes));
  if (::ftruncate(memory.get(), static_cast<off_t>(info.memory_bytes)) != 0) {
    return Error(Errc::kIo, "set the length of memory", errno);
  }
  PieceCopy out(memory.get(), cloned ? Holes::kPunch : Holes::kSkip, how);
  FVMM_TRY(copy_pages(chain, runs, cloned, out), "memory");
  if (how.stop && how.stop()) return Error(Errc::kCancelled, "given up");  // the fsync cannot be
  if (::fchmod(memory.get(), 0400) != 0) return Error(Errc::kIo, "chmod memory", errno);
  seal_step("fsync-memory");
  return fsync_fd(memory.get(), kMemoryFile);
}

Status fold_chain(const Chain& chain, const fs::path& store, const Rewriting& how) {
  const ChainLayer& delta = chain.layers.front();
  FVMM_TRY(lock_for_rewrite(chain));
  const auto runs = FVMM_TRY(resolve(chain));  // reads every delta's hashes: damage is named before anything is written
  StagingDirectory staging = FVMM_TRY(StagingDirectory::create(store));
  v1::TemplateManifest manifest = delta.manifest;
  manifest.set_kind(v1::TEMPLATE_BASE);
  *manifest.mutable_delta() = lineage_list(delta.manifest);
  *manifest.mutable_hashes() = FVMM_TRY(write_merged_hashes(chain, chain.layers.size(), ZeroPages::kDrop, staging));
  manifest.set_pages(hash_entries_in(manifest.hashes().bytes()));
  manifest.clear_runs();
  manifest.clear_lies_on();
  FVMM_TRY(write_memory(chain, runs, manifest.pages(), staging, store, how));
  return take_place(chain, staging, manifest);
}

}  // namespace

Result<TemplateInfo> TemplateStore::fold(const std::string& name, const Rewriting& how) {
  FVMM_TRY(check_stored_name(name));
  const Chain chain = FVMM_TRY(open_chain(directory_ / name), "fold");  // pinned until it is done
  if (chain.layers.front().info.is_delta()) {
    FVMM_TRY(fold_chain(chain, directory_, how), fmt::format("fold template \"{}\"", name));
  }
  return find(name);
}

}  // namespace fvmm::memory
