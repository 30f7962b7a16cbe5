// Vm::save_state and load_state: the order in which a machine's parts go out of KVM and come back. docs/vmm.md has it
// with its reasons.
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <x86intrin.h>

#include <cstring>

#include "base/check.h"
#include "vmm/clock.h"
#include "vmm/state_check.h"
#include "vmm/vm.h"

namespace fvmm::vmm {
namespace {

Result<std::string> get_chip(int vm_fd, std::uint32_t chip_id) {
  kvm_irqchip chip{};
  chip.chip_id = chip_id;
  FVMM_TRY(kvm_ioctl(vm_fd, KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP", &chip));
  return std::string(reinterpret_cast<const char*>(&chip), sizeof chip);
}

Status set_chip(int vm_fd, std::uint32_t chip_id, const std::string& bytes) {
  kvm_irqchip chip{};
  FVMM_CHECK(bytes.size() == sizeof chip, "check_state() has seen the size");
  std::memcpy(&chip, bytes.data(), sizeof chip);
  chip.chip_id = chip_id;
  FVMM_TRY(kvm_ioctl(vm_fd, KVM_SET_IRQCHIP, "KVM_SET_IRQCHIP", &chip));
  return {};
}

std::int64_t monotonic_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

std::uint64_t realtime_ns() {
  return static_cast<std::uint64_t>(system_clock().realtime_ns());
}

/// One reading of a vCPU's TSC, and the realtime of the same instant.
struct TscReading {
  std::uint64_t tsc = 0;
  std::uint64_t realtime_ns = 0;
};

// The realtime before and after must be close, or the thread was interrupted in between and the pair is worth less.
Result<TscReading> read_tsc(int vcpu_fd) {
  constexpr int kTriesMax = 5;
  constexpr std::uint64_t kCloseNs = 20'000;
  TscReading best;
  std::uint64_t best_width = ~std::uint64_t{0};
  for (int i = 0; i < kTriesMax && best_width > kCloseNs; ++i) {
    const std::uint64_t before = realtime_ns();
    const std::uint64_t tsc = FVMM_TRY(get_tsc(vcpu_fd));
    const std::uint64_t width = realtime_ns() - before;
    if (width >= best_width) continue;
    best = {.tsc = tsc, .realtime_ns = before + width / 2};
    best_width = width;
  }
  return best;
}

}  // namespace

Result<v1::MachineState> Vm::save_state() {
  FVMM_CHECK(paused_, "state is saved only while the vCPUs are parked");
  if (stopped_) {
    return Error(Errc::kFailedPrecondition, "the guest has stopped by itself: there is no state to go on from");
  }
  v1::MachineState state;
  state.set_version(kMachineStateVersion);
  std::vector<v1::VcpuState> vcpus(vcpus_.size());
  FVMM_TRY(on_each_vcpu([&](Vcpu& vcpu) -> Status {
             vcpus[vcpu.index()] = FVMM_TRY(save_vcpu(vcpu.fd(), kvm_.features(), profile_));
             vcpus[vcpu.index()].set_index(vcpu.index());
             return {};
           }),
           "save vCPUs");
  vcpus[0].set_cpuid(pack_cpuid(cpuid_));
  for (auto& vcpu : vcpus) *state.add_vcpus() = std::move(vcpu);
  FVMM_TRY(save_irqchip(state), "save interrupt controllers");
  FVMM_TRY(save_clocks(state), "save clocks");
  for (const devices::Bus* bus : {&ports_, &mmio_}) {
    for (const devices::NamedState& device : bus->save_all()) {
      v1::DeviceStateRecord* record = state.add_devices();
      record->set_id(device.id);
      record->set_version(device.state.version);
      record->set_bytes(device.state.bytes.data(), device.state.bytes.size());
    }
  }
  return state;
}

Status Vm::save_irqchip(v1::MachineState& state) {
  state.set_irqchip_pic_master(FVMM_TRY(get_chip(fd_.get(), KVM_IRQCHIP_PIC_MASTER)));
  state.set_irqchip_pic_slave(FVMM_TRY(get_chip(fd_.get(), KVM_IRQCHIP_PIC_SLAVE)));
  state.set_irqchip_ioapic(FVMM_TRY(get_chip(fd_.get(), KVM_IRQCHIP_IOAPIC)));
  kvm_pit_state2 pit{};
  FVMM_TRY(kvm_ioctl(fd_.get(), KVM_GET_PIT2, "KVM_GET_PIT2", &pit));
  const std::int64_t now = monotonic_ns();
  for (kvm_pit_channel_state& channel : pit.channels)
    channel.count_load_time = pit_age_ns(channel.count_load_time, now);
  state.set_pit2(&pit, sizeof pit);
  return {};
}

// The TSC at the instant of the clocks' reading, or right after it where the kernel does not name that instant.
Status Vm::save_clocks(v1::MachineState& state) {
  *state.mutable_clock() = FVMM_TRY(save_clock(fd_.get()));
  if (profile_.tsc_offset && !tsc_scaled_) {
    const std::uint64_t host_tsc = state.clock().host_tsc() != 0 ? state.clock().host_tsc() : __rdtsc();
    for (v1::VcpuState& vcpu : *state.mutable_vcpus()) vcpu.set_guest_tsc(host_tsc + vcpu.tsc_offset());
    return {};
  }
  return on_each_vcpu([&](Vcpu& vcpu) -> Status {
    state.mutable_vcpus(static_cast<int>(vcpu.index()))->set_guest_tsc(FVMM_TRY(get_tsc(vcpu.fd())));
    return {};
  });
}

Status Vm::load_irqchip(const v1::MachineState& state) {
  FVMM_TRY(set_chip(fd_.get(), KVM_IRQCHIP_PIC_MASTER, state.irqchip_pic_master()));
  FVMM_TRY(set_chip(fd_.get(), KVM_IRQCHIP_PIC_SLAVE, state.irqchip_pic_slave()));
  FVMM_TRY(set_chip(fd_.get(), KVM_IRQCHIP_IOAPIC, state.irqchip_ioapic()));
  kvm_pit_state2 pit{};
  std::memcpy(&pit, state.pit2().data(), sizeof pit);
  const std::uint64_t passed = passed_ns(state.clock(), realtime_ns());
  const std::int64_t now = monotonic_ns();
  for (kvm_pit_channel_state& channel : pit.channels) {
    channel.count_load_time = pit_load_time_ns(channel.count_load_time, passed, now);
  }
  FVMM_TRY(kvm_ioctl(fd_.get(), KVM_SET_PIT2, "KVM_SET_PIT2", &pit));
  return {};
}

Status Vm::load_state(const v1::MachineState& state) {
  FVMM_CHECK(paused_ && serial_ && !cpuid_.empty(), "state goes into a paused VM with CPU and devices");
  FVMM_TRY(check_state(state, {.vcpus = vcpus_.size(),
                               .xsave_bytes = kvm_.features().xsave_bytes,
                               .sregs2 = kvm_.features().sregs2,
                               .cpuid = pack_cpuid(cpuid_)}));
  if (state.vcpus(0).tsc_khz() != tsc_khz_) FVMM_TRY(set_tsc_khz(state.vcpus(0).tsc_khz()));
  FVMM_TRY(load_vcpus(state), "load vCPUs");
  // After the APICs: loading the IOAPIC delivers what it holds. Before the devices, which drive their lines.
  FVMM_TRY(load_irqchip(state), "load interrupt controllers");
  return load_devices(state);
}

// What the MMIO bus does not know is for the port bus, which names a record that nobody knows.
Status Vm::load_devices(const v1::MachineState& state) {
  std::vector<devices::NamedState> ports;
  std::vector<devices::NamedState> mmio;
  for (const v1::DeviceStateRecord& record : state.devices()) {
    const auto bytes = std::as_bytes(std::span(record.bytes()));
    auto& records = mmio_.has(record.id()) ? mmio : ports;
    records.push_back({record.id(), {record.version(), {bytes.begin(), bytes.end()}}});
  }
  FVMM_TRY(ports_.load_all(ports));
  return mmio_.load_all(mmio);
}

Status Vm::set_tsc_khz(std::uint32_t khz) {
  if (khz == tsc_khz_) return {};
  if (!tsc_khz_fits(khz, host_tsc_khz_, kvm_.features().tsc_scaling)) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("the guest's TSC runs at {} kHz, this host's at {} kHz, and KVM here cannot scale it", khz,
                             host_tsc_khz_));
  }
  FVMM_TRY(on_each_vcpu([&](Vcpu& vcpu) { return vmm::set_tsc_khz(vcpu.fd(), khz); }), "set TSC frequency");
  tsc_khz_ = khz;
  tsc_scaled_ = !tsc_khz_fits(khz, host_tsc_khz_, false);
  return {};
}

// kvmclock first, then the TSC (Linux Documentation/virt/kvm/devices/vcpu.rst, KVM_VCPU_TSC_OFFSET), then the rest: a
// TSC deadline is armed, and a wall clock written, against the clocks of that moment. All vCPUs get the first one's
// TSC, so that they stay in step to the tick.
Status Vm::load_vcpus(const v1::MachineState& state) {
  FVMM_TRY(load_clock(fd_.get(), kvm_.features(), state.clock()), "load clock");
  TscPlace tsc;
  const auto load = [&](Vcpu& vcpu) -> Status {
    FVMM_TRY(set_tsc_place(vcpu, tsc), "set TSC");
    return load_vcpu(vcpu.fd(), kvm_.features(), state.vcpus(static_cast<int>(vcpu.index())));
  };
  FVMM_TRY(on_each_vcpu(
      [&](Vcpu& vcpu) -> Status {
        tsc = FVMM_TRY(place_tsc(vcpu, state), "plan TSC");
        return load(vcpu);
      },
      0, 1));
  return on_each_vcpu(load, 1);
}

Result<Vm::TscPlace> Vm::place_tsc(Vcpu& first, const v1::MachineState& state) {
  const v1::VcpuState& saved = state.vcpus(0);
  // Without offsets nothing can be kept within a boot either: no boot has an empty id.
  const std::string boot_id = profile_.tsc_offset ? FVMM_TRY(read_boot_id()) : std::string();
  const TscReading now = FVMM_TRY(read_tsc(first.fd()));
  const TscPlan plan = plan_tsc(state.clock(), saved.guest_tsc(), saved.tsc_khz(), boot_id, __rdtsc(), now.realtime_ns);
  if (profile_.tsc_fixed) {
    if (plan.keep_offset) return TscPlace{.how = TscPlace::How::kLeave};
    if (now.tsc < plan.guest_tsc) {
      return Error(Errc::kFailedPrecondition,
                   fmt::format("KVM here shows guests the host's TSC ({}), and this guest's would go back (from {})",
                               now.tsc, plan.guest_tsc));
    }
    spdlog::warn("KVM here shows guests the host's TSC: this guest's jumps ahead by {} ticks",
                 now.tsc - plan.guest_tsc);
    return TscPlace{.how = TscPlace::How::kLeave};
  }
  if (plan.keep_offset) return TscPlace{.how = TscPlace::How::kOffset, .value = saved.tsc_offset()};
  if (!profile_.tsc_offset) return TscPlace{.how = TscPlace::How::kValue, .value = plan.guest_tsc};
  const std::uint64_t offset = FVMM_TRY(get_tsc_offset(first.fd())) + plan.guest_tsc - now.tsc;
  return TscPlace{.how = TscPlace::How::kOffset, .value = offset};
}

Status Vm::set_tsc_place(Vcpu& vcpu, const TscPlace& place) {
  switch (place.how) {
    case TscPlace::How::kLeave:
      return {};
    case TscPlace::How::kOffset:
      return set_tsc_offset(vcpu.fd(), place.value);
    case TscPlace::How::kValue:
      break;
  }
  return set_tsc(vcpu.fd(), place.value);
}

}  // namespace fvmm::vmm
