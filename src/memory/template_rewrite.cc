#include "memory/template_rewrite.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "base/file.h"
#include "memory/template_disks.h"
#include "memory/template_format.h"

namespace fvmm::memory {
namespace {

/// Not a copy: pins taken before the exchange go on in the new directory, because a lock belongs to the inode.
Status link_into(const Chain& chain, const char* from, const StagingDirectory& staging, const char* to) {
  seal_step(fmt::format("link-{}", to));
  if (::linkat(chain.directory.get(), from, staging.fd(), to, 0) == 0) return {};
  const int error = errno;
  const bool full = error == ENOSPC || error == EDQUOT;
  return Error(full ? Errc::kResourceExhausted : Errc::kIo, fmt::format("link {}", to), error);
}

}  // namespace

Status lock_for_rewrite(const Chain& chain) {
  const int directory = chain.directory.get();
  if (::flock(directory, LOCK_EX | LOCK_NB) == 0 && is_same_directory(directory, chain.layers.front().info.directory)) {
    return {};
  }
  return Error(Errc::kAborted, "somebody else is folding or removing it");
}

Result<v1::StoredFile> write_merged_hashes(const Chain& chain, std::size_t layers, ZeroPages zero,
                                           const StagingDirectory& staging) {
  seal_step("write-hashes");
  const UniqueFd file = FVMM_TRY(staging.create_file(kHashesFile));
  std::vector<HashCursor> tables;
  for (const ChainLayer& layer : std::span(chain.layers).first(layers)) {
    tables.push_back(FVMM_TRY(HashCursor::open(layer.hashes.get(), layer.info.memory_bytes, layer.manifest.hashes()),
                              layer.info.name));
  }
  HashTableWriter out(file.get(), chain.layers.front().info.memory_bytes);
  v1::StoredFile stored = FVMM_TRY(merge_hashes(std::move(tables), zero, out), "hashes");
  seal_step("fsync-hashes");
  FVMM_TRY(fsync_fd(file.get(), kHashesFile));
  return stored;
}

Status take_place(const Chain& chain, StagingDirectory& staging, const v1::TemplateManifest& manifest) {
  const ChainLayer& old = chain.layers.front();
  FVMM_TRY(link_into(chain, old.manifest.has_delta() ? kDeltaFile : kHashesFile, staging, kDeltaFile));
  FVMM_TRY(link_into(chain, kMachineFile, staging, kMachineFile));
  FVMM_TRY(link_into(chain, kPinFile, staging, kPinFile));
  for (const std::string& file : disk_files(manifest)) FVMM_TRY(link_into(chain, file.c_str(), staging, file.c_str()));
  return staging.replace(old.info.name, encode_manifest(manifest));
}

const v1::StoredFile& lineage_list(const v1::TemplateManifest& manifest) {
  return manifest.has_delta() ? manifest.delta() : manifest.hashes();
}

}  // namespace fvmm::memory
