// Guest time across a pause: kvmclock, TSC and PIT advance by the real time that passed, and never go back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "proto/state.pb.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

/// This boot of this host, from /proc/sys/kernel/random/boot_id: TSC values compare only within one boot.
Result<std::string> read_boot_id();

/// KVM_GET_CLOCK with the realtime and host TSC of the same instant where the kernel gives them. Where it does not
/// (before Linux 5.16, or a host clock that is not the TSC), the realtime is read beside it and host_tsc stays 0.
Result<v1::ClockState> save_clock(int vm_fd);
/// KVM_SET_CLOCK, with the real time since `state` was saved added: by the kernel itself (KVM_CLOCK_REALTIME) where it
/// can.
Status load_clock(int vm_fd, const KvmFeatures& features, const v1::ClockState& state);

/// Real time from the save until now. Pure. A clock that stands behind the saved one counts as no time: guest time
/// never goes back. 0 when the state has no realtime.
std::uint64_t passed_ns(const v1::ClockState& saved, std::uint64_t realtime_ns_now);

/// Where a guest's TSC must stand now.
struct TscPlan {
  bool keep_offset = false;     // same boot: the host TSC went on, so the saved offset is exact
  std::uint64_t guest_tsc = 0;  // else: this value, at `realtime_ns_now`
};
/// Pure. Same boot and a host TSC that has not gone back (a suspended host starts it anew): keep the offset. Otherwise:
/// the value at the save plus the real time since, at the guest's frequency.
TscPlan plan_tsc(const v1::ClockState& saved, std::uint64_t guest_tsc, std::uint32_t tsc_khz,
                 const std::string& boot_id_now, std::uint64_t host_tsc_now, std::uint64_t realtime_ns_now);

/// kvm_pit_channel_state::count_load_time is CLOCK_MONOTONIC of the host. In a saved state it is the time since instead
/// ("age"), which the real pause adds to; a time in the future counts as now. Pure, and its own inverse but for that.
std::int64_t pit_age_ns(std::int64_t count_load_time_ns, std::int64_t monotonic_ns_now);
std::int64_t pit_load_time_ns(std::int64_t age_ns, std::uint64_t passed, std::int64_t monotonic_ns_now);

}  // namespace fvmm::vmm
