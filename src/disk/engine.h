// Carries out requests on a Stack: which file, copy on write of partly written clusters, flushes that make the map
// durable.
//
//   read    each run of clusters that lie side by side: one read; zeros without any
//   write   cluster of the top layer: straight into it         else, whole: written, then named kData
//                                                              else, in part: read below, merged, written whole, named
//                                                              kData
//   flush   the map as it is now is set aside ─► fdatasync of the data ─► those map blocks ─► fdatasync
//
// A cluster is busy while its first write is under way; what else wants to change it waits its turn.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "disk/file_io.h"
#include "disk/request.h"
#include "disk/stack.h"

namespace fvmm::disk {

inline constexpr std::size_t kRequestsMax = 1024;  // under way on one disk

/// Counters since the engine was made. Thread: the engine's.
struct EngineCounters {
  std::uint64_t requests = 0;
  std::uint64_t failed = 0;
  std::uint64_t clusters_copied = 0;  // partial first writes
};

/// One disk at work. Every request ends exactly once, in any order, through `done`. Owner and thread: the disk's I/O
/// thread.
class Engine {
 public:
  using Done = std::function<void(std::uint64_t token, const Status& status)>;

  Engine(Stack stack, std::unique_ptr<FileIo> io, Done done);
  ~Engine();  // waits for what is under way: it points into guest memory
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  Engine(Engine&&) = delete;
  Engine& operator=(Engine&&) = delete;

  /// Begins a request; what cannot be done ends at once with its error. Nothing reaches the kernel before poll() or
  /// submit(). kResourceExhausted through `done` when kRequestsMax are under way.
  void start(Request request);
  Status submit();
  /// Ends what has ended; waits for something until the deadline. Errors: kIo.
  Status poll(const Deadline& deadline);
  /// Until nothing is under way. kDeadlineExceeded.
  Status drain(const Deadline& deadline);

  [[nodiscard]] std::size_t under_way() const { return jobs_.size(); }
  [[nodiscard]] int wait_fd() const { return io_->wait_fd(); }
  [[nodiscard]] const Stack& stack() const { return stack_; }
  [[nodiscard]] const EngineCounters& counters() const { return counters_; }
  /// With nothing under way: what another host wrote to the top layer since it was opened is seen. As Layer::reread().
  Status reread();
  /// With nothing under way: as Stack::lie_on().
  Status lie_on(LowerLayers lower);
  /// With nothing under way, and flushed: writes go to `next` from here on. As Stack::put_over().
  Result<std::shared_ptr<Layer>> put_over(std::unique_ptr<Layer> next);
  /// Clusters changed since the last call: for a migration, which reads them after. Only of writes that have ended.
  std::vector<ClusterIndex> take_dirty();

 private:
  struct Job;
  struct Piece;
  struct Operation;
  struct Flush;

  // engine.cc: requests and pieces
  void begin(Job& job);
  void begin_read(Job& job);
  void begin_write(Job& job);
  void begin_range(Job& job);
  void begin_raw_range(Job& job, bool must);
  void write_piece(std::unique_ptr<Piece> piece);
  void range_piece(const Piece& piece);
  void finish_part(std::uint64_t job, const Status& status);
  // engine_cluster.cc: the first write of a cluster, and zeroing
  void run_piece(std::unique_ptr<Piece> piece);
  void first_write(std::unique_ptr<Piece> piece);
  void merge(std::unique_ptr<Piece> piece);
  void release(ClusterIndex cluster);
  void mark_dirty(std::uint64_t offset, std::uint64_t bytes);
  // engine_flush.cc
  void begin_flush(Job& job);
  void next_flush();
  void flush_data_synced(const Status& status);
  void flush_map_written(const Status& status);
  void end_flush(const Status& status);
  void give_back(const std::vector<ClusterIndex>& freed);
  // engine_operation.cc: operations on files, continued when they end short
  using Then = std::function<void(const Status&)>;
  void read_file(const Extent& extent, std::vector<iovec> parts, Then then);
  void write_file(int fd, std::uint64_t offset, std::vector<iovec> parts, Then then);
  void sync_file(int fd, Then then);
  void allocate_file(int mode, std::uint64_t offset, std::uint64_t bytes, Then then);
  void enqueue(std::unique_ptr<Operation> operation);
  void issue(Operation& operation);
  void pump();
  void ended(std::uint64_t token, int result);

  Stack stack_;
  std::unique_ptr<FileIo> io_;
  Done done_;
  EngineCounters counters_;
  std::uint64_t next_id_ = 1;
  std::unordered_map<std::uint64_t, std::unique_ptr<Job>> jobs_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Operation>> operations_;  // handed to io_
  std::deque<std::unique_ptr<Operation>> waiting_;                            // for room in io_
  std::unordered_map<ClusterIndex, std::deque<std::unique_ptr<Piece>>> busy_;
  std::deque<std::uint64_t> flushes_;  // jobs; the first one is under way
  std::unique_ptr<Flush> flush_;
  std::vector<ClusterIndex>
      freed_;  // discarded since the last flush began: their room is given back after the next one
  std::vector<bool> dirty_;
};

}  // namespace fvmm::disk
