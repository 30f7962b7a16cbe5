// The engine's own parts: for its .cc files only.
#pragma once

#include <cstddef>

#include "disk/engine.h"

namespace fvmm::disk {

/// A request under way. `left` counts its pieces; the last one ends it.
struct Engine::Job {
  Request request;
  std::uint64_t id = 0;
  std::uint64_t left = 0;
  Status status;
};

/// A part of a write, discard or write-zeroes. One that is not direct lies within one cluster.
struct Engine::Piece {
  enum class Kind : std::uint8_t { kWrite, kZero };
  Kind kind = Kind::kWrite;
  std::uint64_t job = 0;
  std::uint64_t offset = 0;  // on the disk
  std::uint64_t bytes = 0;
  std::vector<iovec> parts;           // of kWrite
  std::vector<std::byte> whole = {};  // the merged cluster while its first write is under way
  [[nodiscard]] ClusterIndex cluster() const { return offset / kClusterBytes; }
};

/// One operation on a file. Ends when all its bytes are done, or with the first error.
struct Engine::Operation {
  enum class Kind : std::uint8_t { kRead, kWrite, kSync, kAllocate };
  Kind kind = Kind::kRead;
  int fd = -1;
  int mode = 0;  // of kAllocate
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;  // left to do
  std::vector<iovec> parts;
  bool zeros_past_end = false;
  Then then;
  std::uint64_t id = 0;
};

/// The flush under way: what of the map it makes durable, and clusters whose place in the file is free after that.
struct Engine::Flush {
  std::vector<std::uint64_t> blocks;
  std::vector<std::vector<std::byte>> images;  // of the blocks, as they were when the flush began
  std::vector<ClusterIndex> freed;
  std::size_t left = 0;
  Status status;
};

}  // namespace fvmm::disk
