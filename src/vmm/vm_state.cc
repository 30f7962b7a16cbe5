// Vm::save_state and load_state: the order in which a machine's parts go out of KVM and come back.
#include <fmt/format.h>

#include <cstring>

#include "base/check.h"
#include "vmm/clock.h"
#include "vmm/vm.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint32_t kMachineVersion = 1;
static_assert(sizeof(kvm_irqchip) == 520 && sizeof(kvm_pit_state2) == 112);

Result<std::string> get_chip(int vm_fd, std::uint32_t chip_id) {
  kvm_irqchip chip{};
  chip.chip_id = chip_id;
  FVMM_TRY(kvm_ioctl(vm_fd, KVM_GET_IRQCHIP, "KVM_GET_IRQCHIP", &chip));
  return std::string(reinterpret_cast<const char*>(&chip), sizeof chip);
}

Status set_chip(int vm_fd, std::uint32_t chip_id, const std::string& bytes) {
  kvm_irqchip chip{};
  if (bytes.size() != sizeof chip) {
    return Error(Errc::kInvalidArgument, fmt::format("irqchip {} state of {} bytes", chip_id, bytes.size()));
  }
  std::memcpy(&chip, bytes.data(), sizeof chip);
  chip.chip_id = chip_id;
  FVMM_TRY(kvm_ioctl(vm_fd, KVM_SET_IRQCHIP, "KVM_SET_IRQCHIP", &chip));
  return {};
}

}  // namespace

Result<v1::MachineState> Vm::save_state() {
  FVMM_CHECK(paused_, "state is saved only while the vCPUs are parked");
  v1::MachineState state;
  state.set_version(kMachineVersion);
  std::vector<v1::VcpuState> vcpus(vcpus_.size());
  FVMM_TRY(on_each_vcpu([&](Vcpu& vcpu) -> Status {
    vcpus[vcpu.index()] = FVMM_TRY(save_vcpu(vcpu.fd(), kvm_.features(), profile_));
    vcpus[vcpu.index()].set_index(vcpu.index());
    return {};
  }), "save vCPUs");
  vcpus[0].set_cpuid(pack_cpuid(cpuid_));
  for (auto& vcpu : vcpus) *state.add_vcpus() = std::move(vcpu);
  FVMM_TRY(save_irqchip(state), "save interrupt controllers");
  *state.mutable_clock() = FVMM_TRY(save_clock(fd_.get()));
  for (const devices::NamedState& device : ports_.save_all()) {
    v1::DeviceStateRecord* record = state.add_devices();
    record->set_id(device.id);
    record->set_version(device.state.version);
    record->set_bytes(device.state.bytes.data(), device.state.bytes.size());
  }
  return state;
}

Status Vm::save_irqchip(v1::MachineState& state) {
  state.set_irqchip_pic_master(FVMM_TRY(get_chip(fd_.get(), KVM_IRQCHIP_PIC_MASTER)));
  state.set_irqchip_pic_slave(FVMM_TRY(get_chip(fd_.get(), KVM_IRQCHIP_PIC_SLAVE)));
  state.set_irqchip_ioapic(FVMM_TRY(get_chip(fd_.get(), KVM_IRQCHIP_IOAPIC)));
  kvm_pit_state2 pit{};
  FVMM_TRY(kvm_ioctl(fd_.get(), KVM_GET_PIT2, "KVM_GET_PIT2", &pit));
  state.set_pit2(&pit, sizeof pit);
  return {};
}

Status Vm::load_irqchip(const v1::MachineState& state) {
  FVMM_TRY(set_chip(fd_.get(), KVM_IRQCHIP_PIC_MASTER, state.irqchip_pic_master()));
  FVMM_TRY(set_chip(fd_.get(), KVM_IRQCHIP_PIC_SLAVE, state.irqchip_pic_slave()));
  FVMM_TRY(set_chip(fd_.get(), KVM_IRQCHIP_IOAPIC, state.irqchip_ioapic()));
  kvm_pit_state2 pit{};
  if (state.pit2().size() != sizeof pit) {
    return Error(Errc::kInvalidArgument, fmt::format("PIT state of {} bytes", state.pit2().size()));
  }
  std::memcpy(&pit, state.pit2().data(), sizeof pit);
  FVMM_TRY(kvm_ioctl(fd_.get(), KVM_SET_PIT2, "KVM_SET_PIT2", &pit));
  return {};
}

Status Vm::load_state(const v1::MachineState& state) {
  FVMM_CHECK(paused_ && serial_ && !cpuid_.empty(), "state goes into a paused VM with CPU and devices");
  if (state.version() != kMachineVersion) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("machine state version {}, this build reads {}", state.version(), kMachineVersion));
  }
  if (static_cast<std::size_t>(state.vcpus_size()) != vcpus_.size()) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("state of {} vCPUs for a VM of {}", state.vcpus_size(), vcpus_.size()));
  }
  FVMM_TRY(load_irqchip(state), "load interrupt controllers");
  FVMM_TRY(on_each_vcpu([&](Vcpu& vcpu) {
    return load_vcpu(vcpu.fd(), kvm_.features(), state.vcpus(static_cast<int>(vcpu.index())));
  }), "load vCPUs");
  FVMM_TRY(load_clocks(state), "load clocks");
  std::vector<devices::NamedState> records;
  for (const v1::DeviceStateRecord& record : state.devices()) {
    const auto bytes = std::as_bytes(std::span(record.bytes()));
    records.push_back({record.id(), {record.version(), {bytes.begin(), bytes.end()}}});
  }
  return ports_.load_all(records);
}

// One TSC value for all vCPUs: the first one's, so that they stay in step.
Status Vm::load_clocks(const v1::MachineState& state) {
  const v1::VcpuState& first = state.vcpus(0);
  if (first.tsc_khz() != tsc_khz_) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("the guest's TSC runs at {} kHz, this host's at {} kHz, and KVM here cannot scale it",
                             first.tsc_khz(), tsc_khz_));
  }
  const std::string boot_id = FVMM_TRY(read_boot_id());
  const TscPlan plan = plan_tsc(state.clock(), first.guest_tsc(), first.tsc_khz(), boot_id,
                                static_cast<std::uint64_t>(system_clock().realtime_ns()));
  FVMM_TRY(on_each_vcpu([&](Vcpu& vcpu) -> Status {
    if (plan.keep_offset && profile_.tsc_offset) return set_tsc_offset(vcpu.fd(), first.tsc_offset());
    if (!profile_.tsc_offset) return set_tsc(vcpu.fd(), plan.guest_tsc);
    const std::uint64_t offset = FVMM_TRY(get_tsc_offset(vcpu.fd()));
    const std::uint64_t now = FVMM_TRY(get_tsc(vcpu.fd()));
    return set_tsc_offset(vcpu.fd(), offset + (plan.guest_tsc - now));
  }));
  return load_clock(fd_.get(), state.clock());
}

}  // namespace fvmm::vmm
