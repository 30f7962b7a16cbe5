// Generations under one another: from a template down to its base, pinned. Internal to the store's own files.
#pragma once

#include <filesystem>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "memory/template_directory.h"
#include "memory/template_image.h"

namespace fvmm::memory {

/// One generation, pinned, its files open for reading.
struct ChainLayer {
  TemplateInfo info;
  v1::TemplateManifest manifest;
  UniqueFd pin;
  UniqueFd payload;  // `memory` or `pages`
  UniqueFd hashes;
};

struct Chain {
  UniqueFd directory;              // of the first layer, as are the next two
  UniqueFd machine;                // its machine state
  UniqueFd delta;                  // what it was, when it was folded or squashed
  std::vector<ChainLayer> layers;  // the one asked for first, the base last; at most kChainMax
};

/// Opens and pins all of them, each one checked against what the manifest above it says. A fold or a gc in between is
/// noticed and the work begun again. Errors as for OpenTemplate::open().
Result<Chain> open_chain(const std::filesystem::path& directory);

/// Runs of all its deltas over its base, from their hash lists. Layer 0 is the delta on the base: layers[size() - 2].
Result<std::vector<OverlayRun>> resolve(const Chain& chain);
/// The same of the deltas above layers[below] only. Layer 0 is the one on it: layers[below - 1].
Result<std::vector<OverlayRun>> resolve(const Chain& chain, std::size_t below);

/// Where that is what a delta lies on (its parent, unless it is squashed): its name in the manifest first, else
/// whatever has its id and digest. Does not pin. kFailedPrecondition names it when it is not here.
Result<Inspected> find_parent(const std::filesystem::path& store, const v1::TemplateManifest& child);

/// Whether a delta lies on it.
bool is_parent_of(const TemplateInfo& parent, const TemplateInfo& child);

/// Generations from this one to its base, by manifests alone; 0 when one is missing, damaged, or past kChainMax.
std::uint32_t chain_length(const std::filesystem::path& store, const v1::TemplateManifest& manifest);

}  // namespace fvmm::memory
