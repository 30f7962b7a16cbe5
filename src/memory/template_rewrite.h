// What fold and squash share: a generation is written anew in a staging directory, from its chain, and then takes the
// old one's place. Internal to the store's own files. docs/template-format.md.
#pragma once

#include <filesystem>

#include "base/result.h"
#include "memory/hash_merge.h"
#include "memory/template_chain.h"
#include "memory/template_directory.h"

namespace fvmm::memory {

/// One rewriting at a time: the lock is on the directory itself and goes with this process. kAborted.
Status lock_for_rewrite(const Chain& chain);

/// `hashes` of the new one: the lists of the first `layers` generations of the chain, merged. Reads all of them to the
/// end, so that damage is named before anything takes a place.
Result<v1::StoredFile> write_merged_hashes(const Chain& chain, std::size_t layers, ZeroPages zero,
                                           const StagingDirectory& staging);

/// `delta`, `machine` and `pin` by hard links, then the seal and the exchange.
/// @param manifest  of the new one
Status take_place(const Chain& chain, StagingDirectory& staging, const v1::TemplateManifest& manifest);

/// The list that the digest is computed from, as the manifest names it.
const v1::StoredFile& lineage_list(const v1::TemplateManifest& manifest);

}  // namespace fvmm::memory
