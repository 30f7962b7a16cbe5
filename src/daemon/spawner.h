// Starts worker processes: this same binary with --worker, in a session of its own, so that it outlives fvmmd.
#pragma once

#include <filesystem>
#include <memory>

#include "base/clock.h"
#include "base/result.h"
#include "daemon/process.h"
#include "daemon/seccomp.h"

namespace fvmm::daemon {

inline constexpr std::chrono::seconds kSpawnWaitMax{10};  // from fork to the worker's ready byte

/// Where warm workers come from; tests give the pool a fake. Thread: any.
class Spawner {
 public:
  Spawner() = default;
  virtual ~Spawner() = default;
  Spawner(const Spawner&) = delete;
  Spawner& operator=(const Spawner&) = delete;
  Spawner(Spawner&&) = delete;
  Spawner& operator=(Spawner&&) = delete;

  /// A warm worker of that shape, ready for Boot, Clone or Receive. kInternal with its last log line when it ends
  /// before; kDeadlineExceeded, with the process killed, when it is not ready in time.
  virtual Result<std::shared_ptr<WorkerProcess>> spawn(const Shape& shape, const Deadline& deadline) = 0;
  /// Ends a worker that carries no VM. Returns once it is gone.
  virtual void end(WorkerProcess& worker) = 0;
};

/// posix_spawn(3) of /proc/self/exe. stderr goes to a log beside the socket.
class ExecSpawner final : public Spawner {
 public:
  struct Options {
    std::filesystem::path workers_directory;  // RUNTIME/workers, must exist
    std::filesystem::path executable = "/proc/self/exe";
    bool test_hooks = false;
    bool complete_instructions = false;
    SeccompMode seccomp = kSeccompDefault;
  };
  explicit ExecSpawner(Options options) : options_(std::move(options)) {}
  Result<std::shared_ptr<WorkerProcess>> spawn(const Shape& shape, const Deadline& deadline) override;
  void end(WorkerProcess& worker) override;

 private:
  const Options options_;
};

/// Asks a worker to stop, waits, and kills it when it does not end. Returns with the process gone and its files
/// removed.
void end_worker(WorkerProcess& worker);

}  // namespace fvmm::daemon
