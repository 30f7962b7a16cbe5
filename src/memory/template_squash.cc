// The deltas of a chain become one, over the template that they began on. docs/template-format.md.
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

/// The first generation below it that a person named, else the base.
std::size_t target_of(const Chain& chain) {
  std::size_t at = 1;
  while (at + 1 < chain.layers.size() && is_generation_name(chain.layers[at].info.name)) ++at;
  return at;
}

/// Runs that lie side by side count as one, as they will in the new file.
std::uint64_t joined(std::span<const OverlayRun> runs) {
  std::uint64_t count = 0;
  PageIndex end = ~PageIndex{0};
  for (const OverlayRun& run : runs) {
    if (run.pages.first != end) ++count;
    end = run.pages.first + run.pages.count;
  }
  return count;
}

/// @param bytes  of the new file: what it may need on disk
Status write_pages(const Chain& chain, std::size_t below, std::span<const OverlayRun> runs, std::uint64_t bytes,
                   const StagingDirectory& staging, const fs::path& store) {
  seal_step("write-pages");
  const UniqueFd pages = FVMM_TRY(staging.create_file(kPagesFile));
  FVMM_TRY(check_room(store, chain.layers.front().info.name, bytes));
  if (::ftruncate(pages.get(), static_cast<off_t>(bytes)) != 0) {
    return Error(Errc::kIo, "set the length of pages", errno);
  }
  std::uint64_t at = 0;
  for (const OverlayRun& run : runs) {
    const int from = chain.layers[below - 1 - run.layer].payload.get();
    const std::uint64_t length = run.pages.count * kPageBytes;
    FVMM_TRY(copy_sparse(from, run.file_page * kPageBytes, pages.get(), at, length, Holes::kSkip), "pages");
    at += length;
  }
  if (::fchmod(pages.get(), 0400) != 0) return Error(Errc::kIo, "chmod pages", errno);
  seal_step("fsync-pages");
  return fsync_fd(pages.get(), kPagesFile);
}

v1::TemplateLink link_to(const TemplateInfo& info) {
  v1::TemplateLink link;
  link.set_name(info.name);
  link.set_id(info.id.raw());
  link.set_digest(info.digest.raw());
  return link;
}

Status squash_chain(const Chain& chain, std::size_t below, const fs::path& store) {
  const ChainLayer& delta = chain.layers.front();
  FVMM_TRY(lock_for_rewrite(chain));
  const auto runs = FVMM_TRY(resolve(chain, below));
  StagingDirectory staging = FVMM_TRY(StagingDirectory::create(store));
  v1::TemplateManifest manifest = delta.manifest;
  *manifest.mutable_delta() = lineage_list(delta.manifest);
  *manifest.mutable_lies_on() = link_to(chain.layers[below].info);
  *manifest.mutable_hashes() = FVMM_TRY(write_merged_hashes(chain, below, ZeroPages::kKeep, staging));
  manifest.set_pages(hash_entries_in(manifest.hashes().bytes()));
  // With deltas further down the old number stays an upper bound: fewer runs cut theirs no oftener.
  if (!chain.layers[below].info.is_delta()) manifest.set_runs(joined(runs));
  FVMM_TRY(write_pages(chain, below, runs, payload_bytes(manifest), staging, store));
  return take_place(chain, staging, manifest);
}

}  // namespace

Result<TemplateInfo> TemplateStore::squash(const std::string& name) {
  FVMM_TRY(check_stored_name(name));
  const Chain chain = FVMM_TRY(open_chain(directory_ / name), "squash");  // pinned until it is done
  const std::size_t below = chain.layers.front().info.is_delta() ? target_of(chain) : 0;
  if (below > 1) FVMM_TRY(squash_chain(chain, below, directory_), fmt::format("squash template \"{}\"", name));
  return find(name);
}

}  // namespace fvmm::memory
