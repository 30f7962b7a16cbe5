// A worker process as fvmmd sees it: where it listens, its shape, and whether it lives.
#pragma once

#include <sys/types.h>

#include <compare>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"

namespace fvmm::daemon {

/// What a warm worker is prepared for; only an equal shape fits.
struct Shape {
  std::uint64_t memory_bytes = 0;
  unsigned vcpus = 1;
  auto operator<=>(const Shape&) const = default;
};

class WorkerClient;

inline constexpr std::chrono::milliseconds kDyingWait{
    500};  // a process closes its sockets before its pidfd is readable

/// One worker, our child or inherited from an earlier fvmmd. Shared between the registry and its watch. Virtual for the
/// sake of simulations. Thread: any.
class WorkerProcess {
 public:
  /// Takes a pidfd. kNotFound when no such process lives.
  static Result<std::shared_ptr<WorkerProcess>> of(pid_t pid, std::filesystem::path socket, Shape shape);
  virtual ~WorkerProcess();
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;
  WorkerProcess(WorkerProcess&&) = delete;
  WorkerProcess& operator=(WorkerProcess&&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] const std::filesystem::path& socket() const { return socket_; }
  [[nodiscard]] std::filesystem::path log() const;  // beside the socket
  [[nodiscard]] const Shape& shape() const { return shape_; }

  /// For calls to it (call_worker.h).
  [[nodiscard]] virtual std::unique_ptr<WorkerClient> client() const;
  /// True once the process has ended; reaps it when it is our child. False when the deadline passed first.
  virtual bool wait_exit(const Deadline& deadline);
  bool alive() { return !wait_exit(Deadline::after(std::chrono::microseconds(0))); }
  virtual void kill();  // SIGKILL; a process already gone is fine
  /// "killed by signal 11 (Segmentation fault): last line of its log"; what is known after wait_exit() returned true.
  virtual std::string how_it_ended();
  /// Removes its sockets and log, once it has ended.
  virtual void remove_files() const;

 protected:
  WorkerProcess(pid_t pid, UniqueFd pidfd, std::filesystem::path socket, Shape shape);

 private:
  const pid_t pid_;
  const UniqueFd pidfd_;
  const std::filesystem::path socket_;
  const Shape shape_;
  std::mutex mutex_;
  bool reaped_ = false;    // mutex_; also set when it is not our child
  std::string exit_text_;  // mutex_
};

/// The last non-empty line of a log, at most 300 bytes of it; empty when there is none.
std::string last_line(const std::filesystem::path& log);

}  // namespace fvmm::daemon
