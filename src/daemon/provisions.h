// What a VM starts with, got while its start can still be refused and nothing depends on it.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "daemon/pool.h"
#include "memory/template_store.h"

namespace fvmm::daemon {

/// A worker of its own, its networks open, its disks found free. Ends the worker unless the VM runs in it: by then no
/// other start of this VM may be under way, so a Claim outlives this. Owner: one start, on its thread.
struct Provisions {
  Provisions() = default;
  ~Provisions() {
    if (taken.worker) end_worker(*taken.worker);
  }
  Provisions(Provisions&& other) noexcept
      : from(std::move(other.from)), nets(std::move(other.nets)), taken(std::exchange(other.taken, {})) {}
  Provisions& operator=(Provisions&&) = delete;
  Provisions(const Provisions&) = delete;
  Provisions& operator=(const Provisions&) = delete;

  std::optional<memory::TemplateInfo> from;  // nothing: it boots its kernel
  std::vector<UniqueFd> nets;                // of vmm::open_nets()
  WorkerPool::Taken taken;
};

}  // namespace fvmm::daemon
