// The latch that takes the right to run from a machine for good, whoever has the machine in hand.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "base/result.h"

namespace fvmm {

/// Open until closed once; never opened again. Thread: any.
class Fence {
 public:
  /// The first reason stands.
  void close(std::string why) {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    why_ = std::move(why);
    closed_ = true;
  }
  [[nodiscard]] bool closed() const { return closed_; }
  /// kAborted with the reason, once closed.
  [[nodiscard]] Status check() const {
    if (!closed_) return {};
    const std::lock_guard lock(mutex_);
    return Error(Errc::kAborted, why_);
  }

 private:
  mutable std::mutex mutex_;
  std::string why_;  // mutex_
  std::atomic<bool> closed_{false};
};

}  // namespace fvmm
