// Flush: data first, then the map blocks that name it, then the map's own durability. One at a time, in order of
// arrival.

#include <fcntl.h>
#include <linux/falloc.h>

#include <algorithm>

#include "disk/engine_parts.h"

namespace fvmm::disk {

void Engine::begin_flush(Job& job) {
  ++job.left;
  flushes_.push_back(job.id);
  if (flushes_.size() == 1) next_flush();
}

void Engine::next_flush() {
  flush_ = std::make_unique<Flush>();
  if (Layer* top = stack_.top()) {
    // Set aside now: a cluster whose first write ends after the data's sync began must not be named by this flush.
    flush_->blocks = top->map().take_changed();
    for (const std::uint64_t block : flush_->blocks) flush_->images.push_back(top->map().block(block));
    flush_->freed = std::move(freed_);
    freed_.clear();
    std::erase_if(flush_->freed, [top](ClusterIndex i) { return top->map().at(i) != ClusterState::kZero; });
  }
  sync_file(stack_.write_fd(), [this](const Status& status) { flush_data_synced(status); });
}

void Engine::flush_data_synced(const Status& status) {
  if (!status || flush_->blocks.empty()) return end_flush(status);
  flush_->left = flush_->blocks.size();
  for (std::size_t i = 0; i < flush_->blocks.size(); ++i) {
    std::vector<iovec> from = {{.iov_base = flush_->images[i].data(), .iov_len = flush_->images[i].size()}};
    write_file(stack_.write_fd(), Layer::map_offset(flush_->blocks[i]), std::move(from),
               [this](const Status& written) { flush_map_written(written); });
  }
}

void Engine::flush_map_written(const Status& status) {
  if (!status && flush_->status) flush_->status = status;
  if (--flush_->left != 0) return;
  if (!flush_->status) return end_flush(flush_->status);
  sync_file(stack_.write_fd(), [this](const Status& synced) { end_flush(synced); });
}

void Engine::end_flush(const Status& status) {
  const Status result = status;  // it may lie in flush_
  const std::unique_ptr<Flush> over = std::move(flush_);
  if (result) {
    give_back(over->freed);
  } else if (stack_.top() != nullptr) {
    stack_.top()->map().put_back(over->blocks);
    freed_.insert(freed_.end(), over->freed.begin(), over->freed.end());
  }
  const std::uint64_t job = flushes_.front();
  flushes_.pop_front();
  finish_part(job, result);
  if (!flushes_.empty()) next_flush();
}

void Engine::give_back(const std::vector<ClusterIndex>& freed) {
  for (const ClusterIndex cluster : freed) {
    if (stack_.top()->map().at(cluster) != ClusterState::kZero || busy_.contains(cluster)) continue;  // written again
    busy_[cluster];
    allocate_file(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, stack_.write_offset(cluster), kClusterBytes,
                  [this, cluster](const Status&) { release(cluster); });  // a hint: not every filesystem can
  }
}

}  // namespace fvmm::disk
