// Warm workers by shape: taken when a VM starts or comes in, replaced in the background.
#pragma once

#include <condition_variable>
#include <deque>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/result.h"
#include "daemon/process.h"
#include "daemon/spawner.h"

namespace fvmm::daemon {

inline constexpr unsigned kWarmWorkersMax = 4;       // of one shape
inline constexpr unsigned kWarmWorkersTotalMax = 8;  // of all shapes
inline constexpr unsigned kRecentShapesMax = 4;      // shapes remembered from takes
/// A replacement starts this long after the last take, so that it does not compete with the VM that is just starting.
inline constexpr std::chrono::milliseconds kReplenishQuiet{250};

/// The pool and its one background thread. Owner: the daemon. Thread: any.
class WorkerPool {
 public:
  struct Options {
    unsigned per_recent_shape = 1;       // at most kWarmWorkersMax
    std::map<Shape, unsigned> always{};  // kept whether used or not
    std::chrono::milliseconds quiet = kReplenishQuiet;
  };
  struct Taken {
    std::shared_ptr<WorkerProcess> worker;
    bool cold = false;    // no warm worker fitted: it was started for this call
    double spawn_ms = 0;  // what that cost
  };

  /// kInvalidArgument for counts past the limits.
  static Result<std::unique_ptr<WorkerPool>> open(Spawner& spawner, Options options);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;
  WorkerPool(WorkerPool&&) = delete;
  WorkerPool& operator=(WorkerPool&&) = delete;

  /// A warm worker of exactly that shape, or a new one. The caller owns its life from here.
  Result<Taken> take(const Shape& shape, const Deadline& deadline);
  /// Reaps warm workers that have died (SIGCHLD).
  void drop_dead();
  [[nodiscard]] unsigned warm() const;
  /// Waits until the pool holds what it wants. False when the deadline passed or a spawn failed.
  bool wait_full(const Deadline& deadline);
  /// Ends every warm worker and the background thread. take() fails from here on.
  void drain();

 private:
  WorkerPool(Spawner& spawner, Options options);
  void replenish();                                        // the background thread
  [[nodiscard]] std::map<Shape, unsigned> wanted() const;  // mutex_ held
  [[nodiscard]] std::optional<Shape> missing() const;      // mutex_ held
  void remember(const Shape& shape);                       // mutex_ held
  std::shared_ptr<WorkerProcess> surplus();                // mutex_ held; out of the pool

  Spawner& spawner_;
  const Options options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::list<std::shared_ptr<WorkerProcess>> warm_;  // mutex_
  std::deque<Shape> recent_;                        // mutex_; newest first
  SteadyTime last_take_{};                          // mutex_
  bool failed_ = false;                             // mutex_; the last background spawn failed: wait for the next take
  bool stopping_ = false;                           // mutex_
  std::thread thread_;
};

}  // namespace fvmm::daemon
