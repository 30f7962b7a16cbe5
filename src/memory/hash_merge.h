// Hash lists of a chain merged into that of its resolved memory. Internal to the store's own files.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "memory/hash_table.h"

namespace fvmm::memory {

/// Of pages that are zero in the end: a delta names them, a base does not.
enum class ZeroPages : std::uint8_t { kDrop, kKeep };

/// Writes the newest hash of each page and returns their number and the table's
/// place in a manifest. Reads every table to its end, so that all checksums are compared.
/// @param tables  newest first
/// @param out     not finished yet, of the same memory
Result<v1::StoredFile> merge_hashes(std::vector<HashCursor> tables, ZeroPages zero, HashTableWriter& out);

}  // namespace fvmm::memory
