// Pieces of writes: straight ones, the first write of a cluster, zeroing; and whose turn it is on a busy cluster.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "disk/engine_parts.h"

namespace fvmm::disk {

void Engine::run_piece(std::unique_ptr<Piece> piece) {
  const ClusterIndex cluster = piece->cluster();
  if (!stack_.is_raw()) {
    if (const auto busy = busy_.find(cluster); busy != busy_.end()) return busy->second.push_back(std::move(piece));
  }
  if (piece->kind == Piece::Kind::kZero) return range_piece(*piece);
  if (stack_.direct(cluster)) return write_piece(std::move(piece));
  first_write(std::move(piece));
}

void Engine::write_piece(std::unique_ptr<Piece> piece) {
  const std::uint64_t at = stack_.write_offset(piece->cluster()) + piece->offset % kClusterBytes;
  write_file(stack_.write_fd(), at, std::move(piece->parts),
             [this, job = piece->job, from = piece->offset, bytes = piece->bytes](const Status& status) {
               mark_dirty(from, bytes);  // also after an error: nobody knows how much of it was written
               finish_part(job, status);
             });
}

void Engine::range_piece(const Piece& piece) {
  const ClusterIndex cluster = piece.cluster();
  if (!stack_.find(cluster).zeros()) {
    if (stack_.direct(cluster)) freed_.push_back(cluster);
    stack_.top()->map().set(cluster, ClusterState::kZero);
    mark_dirty(piece.offset, piece.bytes);
  }
  finish_part(piece.job, {});
}

void Engine::first_write(std::unique_ptr<Piece> piece) {
  const ClusterIndex cluster = piece->cluster();
  const std::uint64_t begin = cluster * kClusterBytes;
  const std::uint64_t bytes = std::min(kClusterBytes, stack_.bytes() - begin);
  busy_[cluster];
  piece->whole.resize(bytes);
  const Extent below = piece->bytes == bytes ? Extent{} : stack_.find(cluster);
  if (below.zeros()) return merge(std::move(piece));  // `whole` is zeros already
  ++counters_.clusters_copied;
  std::vector<iovec> into = {{.iov_base = piece->whole.data(), .iov_len = bytes}};
  auto* raw = piece.release();  // a copyable function cannot own it; the operation always ends, and takes it back
  read_file(below, std::move(into), [this, raw](const Status& status) {
    std::unique_ptr<Piece> back(raw);
    if (status) return merge(std::move(back));
    finish_part(back->job, status);
    release(back->cluster());
  });
}

void Engine::merge(std::unique_ptr<Piece> piece) {
  copy_out(piece->parts, piece->whole.data() + piece->offset % kClusterBytes);
  std::vector<iovec> from = {{.iov_base = piece->whole.data(), .iov_len = piece->whole.size()}};
  const std::uint64_t at = stack_.write_offset(piece->cluster());
  auto* raw = piece.release();
  write_file(stack_.write_fd(), at, std::move(from), [this, raw](const Status& status) {
    const std::unique_ptr<Piece> back(raw);
    if (status) {
      stack_.top()->map().set(back->cluster(), ClusterState::kData);
      mark_dirty(back->offset, back->bytes);
    }
    finish_part(back->job, status);
    release(back->cluster());
  });
}

void Engine::release(ClusterIndex cluster) {
  const auto found = busy_.find(cluster);
  FVMM_CHECK(found != busy_.end(), "a cluster that was not busy");
  std::deque<std::unique_ptr<Piece>> waiting = std::move(found->second);
  busy_.erase(found);
  for (auto& piece : waiting)
    run_piece(std::move(piece));  // the first may make it busy again: the rest waits anew, in order
}

void Engine::mark_dirty(std::uint64_t offset, std::uint64_t bytes) {
  if (bytes == 0) return;
  for (ClusterIndex i = offset / kClusterBytes; i <= (offset + bytes - 1) / kClusterBytes; ++i) dirty_[i] = true;
}

}  // namespace fvmm::disk
