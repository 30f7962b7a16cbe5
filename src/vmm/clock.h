// Guest time across a pause: kvmclock and TSC advance by the real time that passed, and never go back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "proto/state.pb.h"

namespace fvmm::vmm {

/// This boot of this host, from /proc/sys/kernel/random/boot_id: TSC values compare only within one boot.
Result<std::string> read_boot_id();

/// KVM_GET_CLOCK with the realtime and host TSC of the same instant where the kernel gives them.
Result<v1::ClockState> save_clock(int vm_fd);
/// KVM_SET_CLOCK; with KVM_CLOCK_REALTIME the kernel itself adds the real time since `state` was saved.
Status load_clock(int vm_fd, const v1::ClockState& state);

/// Where a guest's TSC must stand now.
struct TscPlan {
  bool keep_offset = false;    // same boot: the host TSC went on, so the saved offset is exact
  std::uint64_t guest_tsc = 0; // else: this value, at `host_tsc_now`
};
/// Pure. Same boot: keep the offset. Another host: the value at the save plus the real time since, at the guest's
/// frequency; a destination clock behind the source's counts as no time (never backwards).
TscPlan plan_tsc(const v1::ClockState& saved, std::uint64_t guest_tsc, std::uint32_t tsc_khz,
                 const std::string& boot_id_now, std::uint64_t realtime_ns_now);

}  // namespace fvmm::vmm
