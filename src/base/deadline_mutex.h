// A mutex that may be waited for until a deadline, and that ThreadSanitizer understands.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace fvmm {

/// As std::timed_mutex, for the steady clock; meets TimedLockable. std::timed_mutex waits with
/// pthread_mutex_clocklock(3), which GCC 12's ThreadSanitizer does not intercept: whatever it guards is then reported
/// as a race. Thread: any; not recursive.
class DeadlineMutex {
 public:
  void lock() {
    std::unique_lock lock(mutex_);
    free_.wait(lock, [this] { return !held_; });
    held_ = true;
  }
  bool try_lock() {
    const std::lock_guard lock(mutex_);
    return !held_ && (held_ = true);
  }
  bool try_lock_until(std::chrono::steady_clock::time_point when) {
    std::unique_lock lock(mutex_);
    return free_.wait_until(lock, when, [this] { return !held_; }) && (held_ = true);
  }
  bool try_lock_for(std::chrono::nanoseconds time) { return try_lock_until(std::chrono::steady_clock::now() + time); }
  void unlock() {
    {
      const std::lock_guard lock(mutex_);
      held_ = false;
    }
    free_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable free_;
  bool held_ = false;  // mutex_
};

}  // namespace fvmm
