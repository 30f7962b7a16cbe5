// The worker: the process that carries one VM. fvmmd starts it warm and empty, then tells it what to become.
#pragma once

#include <cstdint>
#include <filesystem>

#include "daemon/seccomp.h"

namespace fvmm::daemon {

struct WorkerOptions {
  std::filesystem::path socket;    // where it serves the Worker service; its console is at "<socket>.console"
  std::uint64_t memory_bytes = 0;  // shape
  unsigned vcpus = 1;
  int ready_fd = -1;  // one byte is written here once it is warm and serves; -1: nobody waits
  bool test_hooks = false;
  bool complete_instructions = false;  // also on hosts that are not KVM-PVM
  SeccompMode seccomp = kSeccompDefault;
};

/// Runs until Worker/Stop. Returns the process's exit code.
int worker_main(const WorkerOptions& options);

}  // namespace fvmm::daemon
