#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fvmm::control {

/// Threads for handlers, started when first needed and kept: as many as calls were ever under way at once.
/// The owner bounds what it submits; what finds every thread busy waits for the first that is free.
class Pool {
 public:
  explicit Pool(unsigned threads_max) : threads_max_(threads_max) {}
  ~Pool() { join(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  Pool(Pool&&) = delete;
  Pool& operator=(Pool&&) = delete;

  /// Never blocks. False only when no thread exists and none can be started; the task was not taken then. Thread: any.
  [[nodiscard]] bool submit(std::function<void()> task);
  /// Runs what was submitted, then ends the threads. Thread: the owner, not one of the pool's.
  void join();

 private:
  void work();

  const unsigned threads_max_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> tasks_;  // mutex_
  std::vector<std::thread> threads_;         // mutex_
  std::size_t idle_ = 0;                     // mutex_
  bool closed_ = false;                      // mutex_
};

}  // namespace fvmm::control
