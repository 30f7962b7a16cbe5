// Parts of sparse files from one to another. Internal to the store's own files.
#pragma once

#include <cstdint>

#include "base/result.h"

namespace fvmm::memory {

/// What to do in the target where the source has a hole.
enum class Holes : std::uint8_t {
  kSkip,   // the target has a hole there already
  kPunch,  // the target may have data there, which becomes a hole, or zeros where a filesystem has no holes
};

/// Copies bytes inside the kernel where it can (copy_file_range, blocks shared where the filesystem does), else through
/// a buffer. Offsets and length are multiples of 4096; the source has all of these bytes.
/// Errors: kResourceExhausted for a full disk, kDataLoss for a source that ends before, else kIo.
Status copy_sparse(int from, std::uint64_t from_offset, int to, std::uint64_t to_offset, std::uint64_t bytes,
                   Holes holes);

/// Makes a hole, or zeros where the filesystem has no holes. kIo.
Status punch_hole(int file, std::uint64_t offset, std::uint64_t bytes);

/// All of one file as the content of another, blocks shared. False where the filesystem cannot.
bool clone_file(int from, int to);

}  // namespace fvmm::memory
