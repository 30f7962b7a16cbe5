// A delta becomes a base: staged whole beside it, then exchanged with it in one step. docs/template-format.md.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

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

/// The base between the runs, where it was not cloned as a whole, and the runs.
Status copy_pages(const Chain& chain, std::span<const OverlayRun> runs, int memory, bool cloned) {
  const int base = chain.layers.back().payload.get();
  const Holes holes = cloned ? Holes::kPunch : Holes::kSkip;
  const auto copy_base = [&](PageIndex first, PageIndex end) -> Status {
    if (cloned || first == end) return {};
    const std::uint64_t offset = first * kPageBytes;
    return copy_sparse(base, offset, memory, offset, (end - first) * kPageBytes, holes);
  };
  PageIndex at = 0;
  for (const OverlayRun& run : runs) {
    FVMM_TRY(copy_base(at, run.pages.first), "base");
    const int pages = chain.layers[chain.layers.size() - 2 - run.layer].payload.get();
    FVMM_TRY(copy_sparse(pages, run.file_page * kPageBytes, memory, run.pages.first * kPageBytes,
                         run.pages.count * kPageBytes, holes),
             "pages");
    at = run.pages.first + run.pages.count;
  }
  return copy_base(at, chain.layers.front().info.memory_bytes / kPageBytes);
}

/// @param pages  non-zero ones of the result: what it may need on disk
Status write_memory(const Chain& chain, std::span<const OverlayRun> runs, std::uint64_t pages,
                    const StagingDirectory& staging, const fs::path& store) {
  const TemplateInfo& info = chain.layers.front().info;
  seal_step("write-memory");
  const UniqueFd memory = FVMM_TRY(staging.create_file(kMemoryFile));
  const bool cloned = clone_file(chain.layers.back().payload.get(), memory.get());
  FVMM_TRY(check_room(store, info.name, (cloned ? pages_in(runs) : pages) * kPageBytes));
  if (::ftruncate(memory.get(), static_cast<off_t>(info.memory_bytes)) != 0) {
    return Error(Errc::kIo, "set the length of memory", errno);
  }
  FVMM_TRY(copy_pages(chain, runs, memory.get(), cloned), "memory");
  if (::fchmod(memory.get(), 0400) != 0) return Error(Errc::kIo, "chmod memory", errno);
  seal_step("fsync-memory");
  return fsync_fd(memory.get(), kMemoryFile);
}

Status fold_chain(const Chain& chain, const fs::path& store) {
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
  FVMM_TRY(write_memory(chain, runs, manifest.pages(), staging, store));
  return take_place(chain, staging, manifest);
}

}  // namespace

Result<TemplateInfo> TemplateStore::fold(const std::string& name) {
  FVMM_TRY(check_stored_name(name));
  const Chain chain = FVMM_TRY(open_chain(directory_ / name), "fold");  // pinned until it is done
  if (chain.layers.front().info.is_delta()) {
    FVMM_TRY(fold_chain(chain, directory_), fmt::format("fold template \"{}\"", name));
  }
  return find(name);
}

}  // namespace fvmm::memory
