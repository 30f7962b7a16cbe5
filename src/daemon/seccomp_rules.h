// A worker's system calls, and with which arguments. What is on no rule is forbidden.
#pragma once

#include <seccomp.h>

#include <vector>

namespace fvmm::daemon {

/// One call that may be made when all `arguments` hold; several rules of one call are alternatives.
struct SeccompRule {
  int call = 0;
  std::vector<scmp_arg_cmp> arguments = {};
  int error = 0;  // not 0: it fails with this errno instead, and the caller does without
};

/// For this process: some rules hold its process id.
std::vector<SeccompRule> seccomp_rules();

}  // namespace fvmm::daemon
