// fvmmctl doctor: whether this host can run FVMM. Facts are gathered in one place (probe_host) and judged in another
// (judge), so that every verdict can be tested without the host it is about. Needs no daemon.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace fvmm::cli {

enum class Verdict { kOk, kWarn, kFail };

struct Check {
  std::string item;
  Verdict verdict = Verdict::kOk;
  std::string detail;
  std::string fix;  // empty when there is nothing to do
};

/// A KVM capability FVMM uses, with the least value of KVM_CHECK_EXTENSION that is enough.
struct NeededCapability {
  std::string_view name;
  int number = 0;
  int least = 1;
  std::string_view otherwise = {};  // what is lost without it; empty: FVMM cannot run
};
const std::vector<NeededCapability>& needed_capabilities();

/// What doctor looks at. Error fields hold an errno, 0 when it worked.
struct HostFacts {
  int kvm_open_error = 0;
  int kvm_api_version = 0;
  std::map<std::string_view, int> capabilities;  // by name, value of KVM_CHECK_EXTENSION
  bool pvm = false;                              // /sys/module/kvm_pvm
  bool vmx_or_svm = false;                       // kvm_intel or kvm_amd is loaded
  std::string kernel;                            // uname -r
  int io_uring_error = 0;
  int io_uring_disabled = -1;  // kernel.io_uring_disabled, -1 when the kernel has no such setting
  std::string thp;             // the chosen word of transparent_hugepage/enabled, empty: absent
  std::uint64_t memory_available_bytes = 0;
  int overcommit = 0;  // vm.overcommit_memory
  int userfaultfd_error = 0;
  int seccomp_error = 0;               // of asking for a filter that kills the process
  std::uint64_t open_files_max = 0;    // hard RLIMIT_NOFILE
  std::uint64_t locked_bytes_max = 0;  // hard RLIMIT_MEMLOCK, all ones: unlimited
  int fifo_error = 0;                  // of asking for SCHED_FIFO
  std::string state_directory;         // what was probed: the one asked for, or its nearest parent
  int reflink_error = 0;               // of FICLONE in the state directory
};

/// Looks at this host with raw system calls; changes nothing and leaves nothing behind. Thread: any.
HostFacts probe_host(const std::string& state_directory);
std::vector<Check> judge(const HostFacts& facts);
/// No check failed; warnings are allowed.
bool can_run(const std::vector<Check>& checks);

std::string doctor_table(const std::vector<Check>& checks);
/// {"can_run":true,"checks":[{"item":...,"verdict":"ok","detail":...,"fix":...}]}
std::string doctor_json(const std::vector<Check>& checks);

}  // namespace fvmm::cli
