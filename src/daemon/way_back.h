// After a migration: the worker whose VM has left seals what left as a generation, in the background, and ends.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

#include "daemon/process.h"
#include "memory/template_store.h"
#include "proto/config.pb.h"

namespace fvmm::daemon {

inline constexpr std::chrono::minutes kSealWait{10};  // for one generation: its delta at the speed of the disk
inline constexpr std::size_t kSealingMax = 16;        // at once; a worker past that ends without sealing

/// Owner: the migration service. Thread: any.
class WayBacks {
 public:
  explicit WayBacks(memory::TemplateStore& store) : store_(store) {}
  ~WayBacks();  // ends the workers that still seal: what they had written is swept
  WayBacks(const WayBacks&) = delete;
  WayBacks& operator=(const WayBacks&) = delete;
  WayBacks(WayBacks&&) = delete;
  WayBacks& operator=(WayBacks&&) = delete;

  /// Returns at once. The worker ends when it has sealed, or could not; then older generations of the kind go.
  void begin(std::shared_ptr<WorkerProcess> worker, const v1::VmConfig& config);

 private:
  struct Sealing {
    std::shared_ptr<WorkerProcess> worker;
    std::thread thread;
    std::atomic<bool> done{false};
  };
  void seal(const WorkerProcess& worker, const v1::VmConfig& config);

  memory::TemplateStore& store_;
  std::mutex mutex_;
  std::list<Sealing> sealing_;  // mutex_
};

}  // namespace fvmm::daemon
