// fvmmd's command line and configuration file: the same keys in both.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"
#include "daemon/process.h"
#include "daemon/worker.h"

namespace fvmm::daemon {

struct DaemonOptions {
  std::filesystem::path runtime_directory = "/run/fvmm";
  std::filesystem::path state_directory = "/var/lib/fvmm";
  std::filesystem::path resident_directory;  // on tmpfs; empty: chosen by resident_directory()
  std::filesystem::path cpu_template_directory = "/etc/fvmm/cpu-templates";
  std::string listen;  // HOST:PORT of the peer listener; empty: none
  bool test_hooks = false;
  bool complete_instructions = false;       // also on hosts that are not KVM-PVM
  SeccompMode seccomp = kSeccompDefault;    // of workers
  std::map<Shape, unsigned> warm;           // --warm SIZE[xN]
  unsigned warm_workers = 1;                // of each recently used shape
  std::uint64_t replica_staging_bytes = 0;  // for incoming generations of all VMs; 0: kReplicaStagingPercent of RAM
};

/// Where resident templates are when nobody says: below the runtime directory when that is on tmpfs, else in /dev/shm,
/// under a name that belongs to the state directory.
std::filesystem::path resident_directory(const DaemonOptions& options);

/// "8G" -> one worker of 8 GiB; "8Gx2" -> two. kInvalidArgument names the text.
Result<std::pair<Shape, unsigned>> parse_warm(const std::string& text);

/// What to do: be fvmmd, be a worker (--worker), or leave with this code (--help, bad usage: already printed).
using Invocation = std::variant<DaemonOptions, WorkerOptions, int>;
Invocation parse_command_line(int argc, const char* const* argv);

}  // namespace fvmm::daemon
