#include "daemon/way_back.h"

#include <spdlog/spdlog.h>

#include "daemon/call_worker.h"
#include "daemon/spawner.h"
#include "migration/generation_line.h"

namespace fvmm::daemon {

WayBacks::~WayBacks() {
  const std::lock_guard lock(mutex_);
  for (Sealing& one : sealing_) {
    if (!one.done) end_worker(*one.worker);
    one.thread.join();
  }
}

void WayBacks::begin(std::shared_ptr<WorkerProcess> worker, const v1::VmConfig& config) {
  const std::lock_guard lock(mutex_);
  std::erase_if(sealing_, [](Sealing& one) {
    if (!one.done) return false;
    one.thread.join();
    return true;
  });
  if (sealing_.size() >= kSealingMax) return end_worker(*worker);
  Sealing& one = sealing_.emplace_back();
  one.worker = std::move(worker);
  one.thread = std::thread([this, &one, config] {
    seal(*one.worker, config);
    end_worker(*one.worker);
    one.done = true;
  });
}

// Nobody waits for this, and nothing depends on it: without the generation the way back is against the template.
void WayBacks::seal(const WorkerProcess& worker, const v1::VmConfig& config) {
  // Those of now: what a peer pushes while this seals is what the VM is about to come back on.
  const auto older =
      migration::generations_of(store_, config.id(), migration::way_back_line(config), migration::kAllGenerations);
  v1::WorkerSealRequest request;
  request.set_store_directory(store_.directory().string());
  const auto sealed = worker.client()->seal_way_back(request, Deadline::after(kSealWait));
  if (!sealed) {
    spdlog::info("no generation is kept of VM {}: {}", config.name(), sealed.error().message());
    return;
  }
  spdlog::info("VM {} may come back to {}: {} pages kept", config.name(), sealed->ref().name(), sealed->pages());
  migration::remove_generations(store_, older);
}

}  // namespace fvmm::daemon
