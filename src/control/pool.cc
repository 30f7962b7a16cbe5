#include "control/pool.h"

#include <pthread.h>

#include <system_error>

namespace fvmm::control {

bool Pool::submit(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    if (idle_ <= tasks_.size() && threads_.size() < threads_max_) {
      try {
        threads_.emplace_back([this] { work(); });
      } catch (const std::system_error&) {  // EAGAIN: the process may have no more threads
        if (threads_.empty()) return false;
      }
    }
    tasks_.push_back(std::move(task));
  }
  ready_.notify_one();
  return true;
}

void Pool::join() {
  std::vector<std::thread> ending;
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    ending.swap(threads_);
  }
  ready_.notify_all();
  for (std::thread& thread : ending) thread.join();
}

void Pool::work() {
  ::pthread_setname_np(::pthread_self(), "rpc");
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    ready_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
    --idle_;
    if (tasks_.empty()) return;
    std::function<void()> task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
    task = nullptr;  // what it holds is let go here, not under the lock
    lock.lock();
  }
}

}  // namespace fvmm::control
