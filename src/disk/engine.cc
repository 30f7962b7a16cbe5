#include "disk/engine.h"

#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "disk/engine_parts.h"

namespace fvmm::disk {

namespace {
constexpr auto kDrainAtEnd = std::chrono::seconds(30);
// What a partial write-zeroes is written from.
alignas(4096) const std::byte kZeros[kClusterBytes] = {};
}  // namespace

Engine::Engine(Stack stack, std::unique_ptr<FileIo> io, Done done)
    : stack_(std::move(stack)), io_(std::move(io)), done_(std::move(done)), dirty_(clusters_of(stack_.bytes())) {}

Engine::~Engine() {
  const Status drained = drain(Deadline::after(kDrainAtEnd));
  FVMM_CHECK(drained.ok(), "disk I/O under way points into memory that is about to go");
}

void Engine::start(Request request) {
  ++counters_.requests;
  Status fits = check_request(request, stack_.bytes(), stack_.writable());
  if (fits && jobs_.size() >= kRequestsMax) {
    fits = Error(Errc::kResourceExhausted, std::to_string(kRequestsMax) + " requests are under way on this disk");
  }
  if (!fits) {
    ++counters_.failed;
    return done_(request.token, fits);
  }
  const std::uint64_t id = next_id_++;
  auto& job = jobs_[id];
  job = std::make_unique<Job>(Job{.request = std::move(request), .id = id, .left = 1, .status = {}});
  begin(*job);
  finish_part(id, {});  // the part that kept it whole while its pieces began
}

void Engine::begin(Job& job) {
  switch (job.request.kind) {
    case Request::Kind::kRead:
      return begin_read(job);
    case Request::Kind::kWrite:
      return begin_write(job);
    case Request::Kind::kFlush:
      return begin_flush(job);
    case Request::Kind::kDiscard:
    case Request::Kind::kWriteZeroes:
      return begin_range(job);
  }
}

void Engine::begin_read(Job& job) {
  const Request& request = job.request;
  const std::uint64_t end = request.offset + request.bytes;
  for (std::uint64_t at = request.offset; at < end;) {
    Extent extent = stack_.find(at / kClusterBytes);
    if (!extent.zeros()) extent.offset += at % kClusterBytes;
    const auto cluster_end = [end](std::uint64_t offset) {
      return std::min(end, (offset / kClusterBytes + 1) * kClusterBytes);
    };
    std::uint64_t stop = cluster_end(at);
    while (stop < end) {  // clusters that lie side by side are one read
      const Extent next = stack_.find(stop / kClusterBytes);
      if (next.fd != extent.fd || (!next.zeros() && next.offset != extent.offset + (stop - at))) break;
      stop = cluster_end(stop);
    }
    std::vector<iovec> parts = slice(request.data, at - request.offset, stop - at);
    if (extent.zeros()) {
      fill_zeros(parts);
    } else {
      ++job.left;
      read_file(extent, std::move(parts), [this, id = job.id](const Status& status) { finish_part(id, status); });
    }
    at = stop;
  }
}

void Engine::begin_write(Job& job) {
  const Request& request = job.request;
  const std::uint64_t end = request.offset + request.bytes;
  const auto straight = [this](std::uint64_t offset) {
    return stack_.direct(offset / kClusterBytes) && !busy_.contains(offset / kClusterBytes);
  };
  std::vector<std::unique_ptr<Piece>> pieces;
  for (std::uint64_t at = request.offset; at < end;) {
    std::uint64_t stop = std::min(end, (at / kClusterBytes + 1) * kClusterBytes);
    while (stop < end && straight(at) && straight(stop)) stop = std::min(end, stop + kClusterBytes);
    pieces.push_back(std::make_unique<Piece>(Piece{.kind = Piece::Kind::kWrite,
                                                   .job = job.id,
                                                   .offset = at,
                                                   .bytes = stop - at,
                                                   .parts = slice(request.data, at - request.offset, stop - at)}));
    at = stop;
  }
  job.left += pieces.size();
  for (auto& piece : pieces) run_piece(std::move(piece));
}

void Engine::begin_range(Job& job) {
  const Request& request = job.request;
  const bool must = request.kind == Request::Kind::kWriteZeroes;
  if (stack_.is_raw()) return begin_raw_range(job, must);
  const std::uint64_t end = request.offset + request.bytes;
  std::vector<std::unique_ptr<Piece>> pieces;
  for (std::uint64_t at = request.offset; at < end;) {
    const std::uint64_t stop = std::min(end, (at / kClusterBytes + 1) * kClusterBytes);
    const bool whole = at % kClusterBytes == 0 && (stop % kClusterBytes == 0 || stop == stack_.bytes());
    auto piece = std::make_unique<Piece>(
        Piece{.kind = Piece::Kind::kZero, .job = job.id, .offset = at, .bytes = stop - at, .parts = {}});
    if (!whole) {
      piece->kind = Piece::Kind::kWrite;
      piece->parts = {{.iov_base = const_cast<std::byte*>(kZeros), .iov_len = stop - at}};  // only read from
    }
    if (whole || must) pieces.push_back(std::move(piece));  // a discard of less than a cluster is a hint not taken
    at = stop;
  }
  job.left += pieces.size();
  for (auto& piece : pieces) run_piece(std::move(piece));
}

namespace {
bool unsupported(const Status& status) {
  return !status && (status.error().sys_errno() == EOPNOTSUPP || status.error().sys_errno() == ENODEV);
}
}  // namespace

// What a filesystem or device cannot do is done in the next best way: a hole reads as zeros too, and written zeros do.
void Engine::begin_raw_range(Job& job, bool must) {
  const std::uint64_t offset = job.request.offset;
  const std::uint64_t bytes = job.request.bytes;
  ++job.left;
  const auto finish = [this, id = job.id, offset, bytes](const Status& status) {
    mark_dirty(offset, bytes);
    finish_part(id, status);
  };
  const auto punch = [this, finish, must, offset, bytes] {
    allocate_file(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes,
                  [this, finish, must, offset, bytes](const Status& status) {
                    if (!unsupported(status)) return finish(status);
                    if (!must) return finish({});  // a hint not taken
                    std::vector<iovec> zeros;
                    for (std::uint64_t done = 0; done < bytes; done += kClusterBytes) {
                      zeros.push_back({.iov_base = const_cast<std::byte*>(kZeros),
                                       .iov_len = std::min(kClusterBytes, bytes - done)});
                    }
                    write_file(stack_.write_fd(), offset, std::move(zeros), finish);
                  });
  };
  if (!must) return punch();
  allocate_file(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, bytes,
                [finish, punch](const Status& status) { return unsupported(status) ? punch() : finish(status); });
}

void Engine::finish_part(std::uint64_t id, const Status& status) {
  const auto found = jobs_.find(id);
  FVMM_CHECK(found != jobs_.end(), "a part of a request that has ended");
  Job& job = *found->second;
  if (!status && job.status) job.status = status;
  if (--job.left != 0) return;
  const std::unique_ptr<Job> over = std::move(found->second);
  jobs_.erase(found);
  if (!over->status) ++counters_.failed;
  done_(over->request.token, over->status);
}

Status Engine::submit() {
  pump();
  return io_->submit();
}

Status Engine::poll(const Deadline& deadline) {
  pump();
  FVMM_TRY(io_->poll(deadline, [this](std::uint64_t token, int result) { ended(token, result); }));
  pump();
  return io_->submit();
}

Status Engine::drain(const Deadline& deadline) {
  while (!jobs_.empty() || !operations_.empty() || !waiting_.empty()) {
    if (deadline.passed()) {
      return Error(Errc::kDeadlineExceeded, std::to_string(jobs_.size()) + " disk request(s) still under way");
    }
    FVMM_TRY(poll(deadline));
  }
  return {};
}

Status Engine::reread() {
  FVMM_CHECK(jobs_.empty(), "a disk is read again only while nothing is under way");
  freed_.clear();  // of the map that goes
  return stack_.is_raw() ? Status{} : stack_.top()->reread();
}

Status Engine::lie_on(LowerLayers lower) {
  FVMM_CHECK(jobs_.empty() && !stack_.is_raw(), "what a layered disk lies on is changed at rest");
  return stack_.lie_on(std::move(lower));
}

Result<std::shared_ptr<Layer>> Engine::put_over(std::unique_ptr<Layer> next) {
  FVMM_CHECK(jobs_.empty() && !stack_.is_raw(), "a layer is put over a layered disk at rest");
  FVMM_CHECK(stack_.top()->map().take_changed().empty(), "what lies below a layer is flushed");
  freed_.clear();  // of the layer that nothing changes any more
  return stack_.put_over(std::move(next));
}

std::vector<ClusterIndex> Engine::take_dirty() {
  std::vector<ClusterIndex> out;
  for (ClusterIndex i = 0; i < dirty_.size(); ++i) {
    if (dirty_[i]) out.push_back(i);
    dirty_[i] = false;
  }
  return out;
}

}  // namespace fvmm::disk
