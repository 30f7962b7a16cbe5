// What a worker shows of its VM, and who waits for a change of it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

#include "base/clock.h"
#include "proto/worker.pb.h"

namespace fvmm::daemon {

/// The worker's public state. Thread: any.
class WorkerBoard {
 public:
  /// Changes it under the lock, and wakes the watchers.
  void change(const std::function<void(v1::WorkerInfo&)>& edit);
  void set_state(v1::VmState state, const std::string& detail);
  /// VM_MOVED for good: later changes leave state, place and detail as they are.
  void end_as_moved(const std::string& to, const std::string& detail);
  [[nodiscard]] v1::WorkerInfo get() const;
  /// Waits for a change after `seen` (0: none seen yet), at most until the deadline; returns what is there now.
  v1::WorkerInfo wait(std::uint64_t& seen, const Deadline& deadline) const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  v1::WorkerInfo info_;        // mutex_
  bool moved_ = false;         // mutex_; end_as_moved()
  std::uint64_t version_ = 1;  // mutex_
};

}  // namespace fvmm::daemon
