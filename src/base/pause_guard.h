// Pausing is a scope: take the guard, do the work, leave. An early return never leaves a guest frozen.
#pragma once

#include <spdlog/spdlog.h>

#include <utility>

#include "base/result.h"

namespace fvmm {

/// Pauses what has paused(), pause() and resume(), and resumes it at the end of its scope; what was paused before stays
/// so. Owner: the thread that owns the paused object, which outlives the guard.
template <class Pausable>
class [[nodiscard]] PauseGuard {
 public:
  /// Errors: those of pause().
  static Result<PauseGuard> take(Pausable& what) {
    const bool was_paused = what.paused();
    FVMM_TRY(what.pause());
    return PauseGuard(was_paused ? nullptr : &what);
  }
  ~PauseGuard() {
    if (what_ == nullptr) return;
    const Status status = what_->resume();
    if (!status) spdlog::error("resume at the end of a pause: {}", status.error().message());
  }
  PauseGuard(PauseGuard&& other) noexcept : what_(std::exchange(other.what_, nullptr)) {}
  PauseGuard(const PauseGuard&) = delete;
  PauseGuard& operator=(const PauseGuard&) = delete;
  PauseGuard& operator=(PauseGuard&&) = delete;
  /// From here on it stays frozen: the right to run is leaving this host.
  void keep_paused() noexcept { what_ = nullptr; }

 private:
  explicit PauseGuard(Pausable* what) : what_(what) {}
  Pausable* what_;  // null: nothing to resume
};

}  // namespace fvmm
