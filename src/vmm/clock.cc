#include "vmm/clock.h"

#include <cctype>

#include "base/file.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

Result<std::string> read_boot_id() {
  // procfs reports size 0, so read_file's stat-based length does not serve here.
  const UniqueFd fd = FVMM_TRY(open_file("/proc/sys/kernel/random/boot_id", 0));
  std::string id(36, '\0');
  FVMM_TRY(read_all(fd.get(), std::as_writable_bytes(std::span(id)), 0), "read boot_id");
  return id;
}

Result<v1::ClockState> save_clock(int vm_fd) {
  kvm_clock_data data{};
  FVMM_TRY(kvm_ioctl(vm_fd, KVM_GET_CLOCK, "KVM_GET_CLOCK", &data));
  v1::ClockState state;
  state.set_kvmclock_ns(data.clock);
  if ((data.flags & KVM_CLOCK_REALTIME) != 0) state.set_realtime_ns(data.realtime);
  if ((data.flags & KVM_CLOCK_HOST_TSC) != 0) state.set_host_tsc(data.host_tsc);
  state.set_boot_id(FVMM_TRY(read_boot_id()));
  return state;
}

Status load_clock(int vm_fd, const v1::ClockState& state) {
  kvm_clock_data data{};
  data.clock = state.kvmclock_ns();
  if (state.realtime_ns() != 0) {
    data.flags = KVM_CLOCK_REALTIME;
    data.realtime = state.realtime_ns();
  }
  FVMM_TRY(kvm_ioctl(vm_fd, KVM_SET_CLOCK, "KVM_SET_CLOCK", &data));
  return {};
}

TscPlan plan_tsc(const v1::ClockState& saved, std::uint64_t guest_tsc, std::uint32_t tsc_khz,
                 const std::string& boot_id_now, std::uint64_t realtime_ns_now) {
  if (saved.boot_id() == boot_id_now) return {.keep_offset = true, .guest_tsc = guest_tsc};
  const std::uint64_t passed_ns =
      realtime_ns_now > saved.realtime_ns() && saved.realtime_ns() != 0 ? realtime_ns_now - saved.realtime_ns() : 0;
  const auto ticks = static_cast<unsigned __int128>(passed_ns) * tsc_khz / 1'000'000U;
  return {.keep_offset = false, .guest_tsc = guest_tsc + static_cast<std::uint64_t>(ticks)};
}

}  // namespace fvmm::vmm
