#include "daemon/privileges.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>

namespace fvmm::daemon {
namespace {

constexpr rlim_t kRealTimePriority = 1;
constexpr unsigned kCapabilitiesMax = 64;  // bits of a capability set

/// As far as allowed. Whether it is enough now.
bool raise_limit(__rlimit_resource resource, rlim_t least) {
  rlimit limit{};
  if (::getrlimit(resource, &limit) != 0) return false;
  const rlimit raised{.rlim_cur = std::max(limit.rlim_cur, least), .rlim_max = std::max(limit.rlim_max, least)};
  if (::setrlimit(resource, &raised) == 0) return true;
  limit.rlim_cur = limit.rlim_max;
  return ::setrlimit(resource, &limit) == 0 && limit.rlim_cur >= least;
}

/// The capabilities that stay: those whose limits could not be raised in their place.
std::uint64_t needed_capabilities() {
  std::uint64_t kept = 0;
  if (!raise_limit(RLIMIT_RTPRIO, kRealTimePriority)) kept |= 1ULL << CAP_SYS_NICE;
  if (!raise_limit(RLIMIT_MEMLOCK, RLIM_INFINITY)) kept |= 1ULL << CAP_IPC_LOCK;
  return kept;
}

/// All others of this thread, from every set; from the bounding and ambient sets the kept ones as well.
Status drop_capabilities(std::uint64_t kept) {
  (void)::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);  // EINVAL: a kernel without them
  for (unsigned capability = 0; capability < kCapabilitiesMax; ++capability) {
    // EINVAL: past the last one; EPERM: without CAP_SETPCAP, and then the sets below are what counts.
    if (::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0) break;
  }
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> sets{};
  if (::syscall(SYS_capget, &header, sets.data()) != 0) return Error(Errc::kIo, "capget", errno);
  for (unsigned half = 0; half < sets.size(); ++half) {
    sets.at(half).permitted &= static_cast<std::uint32_t>(kept >> (32 * half));
    sets.at(half).effective = sets.at(half).permitted;
    sets.at(half).inheritable = 0;
  }
  if (::syscall(SYS_capset, &header, sets.data()) != 0) return Error(Errc::kIo, "capset", errno);
  return {};
}

}  // namespace

Status drop_privileges(int last_fd) {
  FVMM_TRY(drop_capabilities(needed_capabilities()));
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return Error(Errc::kIo, "prctl(PR_SET_NO_NEW_PRIVS)", errno);
  if (::close_range(static_cast<unsigned>(last_fd) + 1, ~0U, 0) != 0) return Error(Errc::kIo, "close_range", errno);
  return {};
}

}  // namespace fvmm::daemon
