// Follows the worker of every VM: one thread each, which notes what the worker reports and what its end means.
#pragma once

#include <atomic>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

#include "base/id.h"
#include "base/result.h"
#include "daemon/call_worker.h"
#include "daemon/process.h"
#include "daemon/registry.h"

namespace fvmm::daemon {

/// How long an old worker may take to answer when fvmmd starts; one that does not answer stops the start (it may run a
/// guest).
inline constexpr std::chrono::seconds kAdoptWait{10};

/// Owner: the daemon. Thread: any.
class Supervisor {
 public:
  Supervisor(Registry& registry, StopSignal& stop) : registry_(registry), stop_(stop) {}
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;
  Supervisor(Supervisor&&) = delete;
  Supervisor& operator=(Supervisor&&) = delete;

  /// Follows the worker until it ends or the VM leaves it. Call after Claim::attach().
  void watch(const Id& id, std::shared_ptr<WorkerProcess> worker);
  /// At start: connects to every socket in the directory, adopts workers with a VM, ends warm ones, removes dead
  /// sockets. kUnavailable naming the process when a living worker does not answer: its guest may be running.
  Status adopt_all(const std::filesystem::path& workers_directory);
  /// After StopSignal::fire() and Registry::stop(): waits for the threads. Workers go on.
  void join();

 private:
  struct Watch {
    std::thread thread;
    std::atomic<bool> done = false;
  };
  Status adopt(const std::filesystem::path& socket);
  void follow(const Id& id, WorkerProcess& worker);
  bool on_report(const Id& id, WorkerProcess& worker, const v1::WorkerInfo& info);
  /// Whether the disk still lacks something of what the worker says.
  [[nodiscard]] bool is_behind(const Id& id, const v1::WorkerInfo& info) const;
  /// False when the disk took no record of its end.
  bool on_end(const Id& id, WorkerProcess& worker);
  void settle(Claim claim);
  Status give_up_replica(Claim& claim);
  /// False when fvmmd stops meanwhile.
  bool wait(std::chrono::seconds time);

  Registry& registry_;
  StopSignal& stop_;
  std::mutex mutex_;
  std::list<Watch> watches_;  // mutex_
};

}  // namespace fvmm::daemon
