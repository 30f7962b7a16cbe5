// The system calls of a worker that is set up: a list of what it may do (seccomp_rules.cc), by libseccomp. io_uring's
// operations pass no filter; they reach files and sockets, which the list allows anyway.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace fvmm::daemon {

enum class SeccompMode : std::uint8_t {
  kOff,
  kLog,  // what is not on the list is done, and written to the kernel's log
  kOn,   // what is not on the list kills the worker, with SIGSYS: one VM
};

std::string_view to_string(SeccompMode mode);
/// "on", "log", "off". kInvalidArgument names the text.
Result<SeccompMode> parse_seccomp(std::string_view text);

/// A sanitizer's run time makes calls of its own, and a killed process shows no report.
#ifdef FVMM_SANITIZED
inline constexpr SeccompMode kSeccompDefault = SeccompMode::kLog;
#else
inline constexpr SeccompMode kSeccompDefault = SeccompMode::kOn;
#endif

/// For all threads of this process, those to come included; there is no way back. Needs no_new_privs
/// (daemon/privileges.h). Errors: kUnimplemented for a kernel without seccomp filters; kIo.
Status enter_seccomp(SeccompMode mode);

}  // namespace fvmm::daemon
