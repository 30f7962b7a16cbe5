// The lock between a device's own thread, which works in turns, and the callers of its contract (virtio_device.h), who
// go before its next turn: a mutex is not fair, and a busy thread would have it again before anybody else wakes up.
#pragma once

#include <atomic>
#include <mutex>

#include "base/clock.h"
#include "base/deadline_mutex.h"

namespace fvmm::devices {

class TurnLock {
 public:
  using Held = std::unique_lock<DeadlineMutex>;

  /// For callers. Thread: any but the device's.
  Held take() {
    ++wanted_;
    Held held(mutex_);
    arrived();
    return held;
  }
  /// Not owned: the deadline has passed.
  Held take(const Deadline& deadline) {
    ++wanted_;
    Held held(mutex_, deadline.at());
    arrived();
    return held;
  }
  /// For the device's thread: after all who wait.
  Held take_turn() {
    for (unsigned others = wanted_; others != 0; others = wanted_) wanted_.wait(others);
    return Held(mutex_);
  }

 private:
  void arrived() {
    if (--wanted_ == 0) wanted_.notify_all();
  }

  std::atomic<unsigned> wanted_{0};  // callers that wait
  DeadlineMutex mutex_;
};

}  // namespace fvmm::devices
