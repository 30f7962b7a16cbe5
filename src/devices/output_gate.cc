#include "devices/output_gate.h"

#include <mutex>
#include <utility>
#include <vector>

#include "base/check.h"

namespace fvmm::devices {

bool OutputGate::pass(std::size_t bytes, Delivery delivery) {
  {
    const std::shared_lock lock(mutex_);
    if (!holding_) {
      delivery();
      return true;
    }
  }
  const std::unique_lock lock(mutex_);
  if (holding_) return keep(bytes, std::move(delivery));
  delivery();  // it was opened in between
  return true;
}

bool OutputGate::pass(OutputSink& sink, std::span<const std::byte> bytes) {
  {
    const std::shared_lock lock(mutex_);
    if (!holding_) {
      sink.emit(bytes);
      return true;
    }
  }
  return pass(bytes.size(), [&sink, copy = std::vector<std::byte>(bytes.begin(), bytes.end())] { sink.emit(copy); });
}

bool OutputGate::keep(std::size_t bytes, Delivery delivery) {
  if (held_.size() >= items_max_ || bytes > bytes_max_ - held_bytes_) {
    ++refused_;
    return false;
  }
  held_bytes_ += bytes;
  held_.push_back({.epoch = epoch_, .bytes = bytes, .delivery = std::move(delivery)});
  return true;
}

void OutputGate::hold(Epoch epoch) {
  const std::unique_lock lock(mutex_);
  FVMM_CHECK(epoch >= epoch_, "epochs only grow");
  holding_ = true;
  epoch_ = epoch;
}

std::size_t OutputGate::release(Epoch up_to) {
  const std::unique_lock lock(mutex_);
  std::size_t released = 0;
  for (; !held_.empty() && held_.front().epoch <= up_to; ++released) {
    held_bytes_ -= held_.front().bytes;
    held_.front().delivery();
    held_.pop_front();
  }
  return released;
}

std::size_t OutputGate::drop(Epoch after) {
  const std::unique_lock lock(mutex_);
  std::size_t count = 0;
  for (; !held_.empty() && held_.back().epoch > after; ++count) {
    held_bytes_ -= held_.back().bytes;
    held_.pop_back();
  }
  dropped_ += count;
  return count;
}

void OutputGate::open() {
  const std::unique_lock lock(mutex_);
  for (const Item& item : held_) item.delivery();
  held_.clear();
  held_bytes_ = 0;
  holding_ = false;
}

OutputGate::Counts OutputGate::counts() const {
  const std::unique_lock lock(mutex_);
  return {.held_items = held_.size(), .held_bytes = held_bytes_, .refused = refused_, .dropped = dropped_};
}

void GatedSink::emit(std::span<const std::byte> bytes) {
  if (!gate_.pass(sink_, bytes)) dropped_bytes_.fetch_add(bytes.size(), std::memory_order_relaxed);
}

}  // namespace fvmm::devices
