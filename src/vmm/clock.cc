#include "vmm/clock.h"

#include <algorithm>
#include <limits>

#include "base/clock.h"
#include "base/file.h"

namespace fvmm::vmm {

namespace {

Result<std::string> read_boot_id_file() {
  // procfs reports size 0, so read_file's stat-based length does not serve here.
  const UniqueFd fd = FVMM_TRY(open_file("/proc/sys/kernel/random/boot_id", 0));
  std::string id(36, '\0');
  FVMM_TRY(read_all(fd.get(), std::as_writable_bytes(std::span(id)), 0), "read boot_id");
  return id;
}

}  // namespace

// Read once: it cannot change while this process lives, and a pause shall not wait for procfs.
Result<std::string> read_boot_id() {
  static const Result<std::string> id = read_boot_id_file();
  return id;
}

Result<v1::ClockState> save_clock(int vm_fd) {
  kvm_clock_data data{};
  FVMM_TRY(kvm_ioctl(vm_fd, KVM_GET_CLOCK, "KVM_GET_CLOCK", &data));
  v1::ClockState state;
  state.set_kvmclock_ns(data.clock);
  const bool exact = (data.flags & KVM_CLOCK_REALTIME) != 0;
  state.set_realtime_ns(exact ? data.realtime : static_cast<std::uint64_t>(system_clock().realtime_ns()));
  if ((data.flags & KVM_CLOCK_HOST_TSC) != 0) state.set_host_tsc(data.host_tsc);
  state.set_boot_id(FVMM_TRY(read_boot_id()));
  return state;
}

Status load_clock(int vm_fd, const KvmFeatures& features, const v1::ClockState& state) {
  kvm_clock_data data{};
  data.clock = state.kvmclock_ns();
  if (state.realtime_ns() != 0 && features.clock_realtime) {
    data.flags = KVM_CLOCK_REALTIME;
    data.realtime = state.realtime_ns();
  } else {  // an older kernel takes no flags at all
    data.clock += passed_ns(state, static_cast<std::uint64_t>(system_clock().realtime_ns()));
  }
  FVMM_TRY(kvm_ioctl(vm_fd, KVM_SET_CLOCK, "KVM_SET_CLOCK", &data));
  return {};
}

std::uint64_t passed_ns(const v1::ClockState& saved, std::uint64_t realtime_ns_now) {
  const bool forward = saved.realtime_ns() != 0 && realtime_ns_now > saved.realtime_ns();
  return forward ? realtime_ns_now - saved.realtime_ns() : 0;
}

TscPlan plan_tsc(const v1::ClockState& saved, std::uint64_t guest_tsc, std::uint32_t tsc_khz,
                 const std::string& boot_id_now, std::uint64_t host_tsc_now, std::uint64_t realtime_ns_now) {
  if (saved.boot_id() == boot_id_now && host_tsc_now >= saved.host_tsc()) {
    return {.keep_offset = true, .guest_tsc = guest_tsc};
  }
  // 128 bits: an hour is 3.6e12 ns, times 3e6 kHz is past 2^63 already.
  const auto ticks = static_cast<unsigned __int128>(passed_ns(saved, realtime_ns_now)) * tsc_khz / 1'000'000U;
  return {.keep_offset = false, .guest_tsc = guest_tsc + static_cast<std::uint64_t>(ticks)};
}

std::int64_t pit_age_ns(std::int64_t count_load_time_ns, std::int64_t monotonic_ns_now) {
  return count_load_time_ns < monotonic_ns_now ? monotonic_ns_now - count_load_time_ns : 0;
}

std::int64_t pit_load_time_ns(std::int64_t age_ns, std::uint64_t passed, std::int64_t monotonic_ns_now) {
  // The result may lie before this host's boot (negative): KVM only subtracts it from now. Halves keep it from
  // wrapping.
  constexpr std::uint64_t kHalf = std::numeric_limits<std::int64_t>::max() / 2;
  const std::uint64_t age =
      std::min(static_cast<std::uint64_t>(std::max<std::int64_t>(age_ns, 0)), kHalf / 2) + std::min(passed, kHalf / 2);
  return monotonic_ns_now - static_cast<std::int64_t>(age);
}

}  // namespace fvmm::vmm
