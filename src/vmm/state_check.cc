#include "vmm/state_check.h"

#include <fmt/format.h>

#include <string_view>

#include "vmm/kvm_abi.h"
#include "vmm/vcpu_state.h"

namespace fvmm::vmm {
namespace {

static_assert(sizeof(kvm_irqchip) == 520 && sizeof(kvm_pit_state2) == 112 && sizeof(kvm_lapic_state) == 1024);
static_assert(sizeof(kvm_regs) == 144 && sizeof(kvm_sregs) == 312 && sizeof(kvm_sregs2) == 320);
static_assert(sizeof(kvm_vcpu_events) == 64 && sizeof(kvm_debugregs) == 128 && sizeof(kvm_xcrs) == 392);

Status check_version(std::string_view what, std::uint32_t version, std::uint32_t ours) {
  if (version == ours) return {};
  return Error(Errc::kFailedPrecondition, fmt::format("{} state version {}, this build reads {}", what, version, ours));
}

Status check_size(std::string_view what, const std::string& bytes, std::size_t wanted) {
  if (bytes.size() == wanted) return {};
  return Error(Errc::kInvalidArgument, fmt::format("{} state of {} bytes, need {}", what, bytes.size(), wanted));
}

Status check_sregs(const std::string& bytes, bool sregs2) {
  if (bytes.size() == sizeof(kvm_sregs)) return {};
  FVMM_TRY(check_size("sregs2", bytes, sizeof(kvm_sregs2)));
  if (!sregs2) return Error(Errc::kFailedPrecondition, "KVM here lacks KVM_CAP_SREGS2, which the state was saved with");
  return {};
}

Status check_xsave(const std::string& bytes, std::uint32_t bytes_max) {
  if (bytes.size() < abi::kXsaveBytesMin || bytes.size() % 4 != 0) {
    return Error(Errc::kInvalidArgument, fmt::format("XSAVE state of {} bytes", bytes.size()));
  }
  if (bytes.size() > bytes_max) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("XSAVE state of {} bytes, this host has {}", bytes.size(), bytes_max));
  }
  return {};
}

Status check_vcpu(const v1::VcpuState& vcpu, const StateShape& shape) {
  FVMM_TRY(check_version("vCPU", vcpu.version(), kVcpuStateVersion));
  FVMM_TRY(check_size("mp_state", vcpu.mp_state(), sizeof(kvm_mp_state)));
  FVMM_TRY(check_size("regs", vcpu.regs(), sizeof(kvm_regs)));
  FVMM_TRY(check_sregs(vcpu.sregs2(), shape.sregs2));
  FVMM_TRY(check_xsave(vcpu.xsave(), shape.xsave_bytes));
  FVMM_TRY(check_size("xcrs", vcpu.xcrs(), sizeof(kvm_xcrs)));
  FVMM_TRY(check_size("debugregs", vcpu.debugregs(), sizeof(kvm_debugregs)));
  FVMM_TRY(check_size("lapic", vcpu.lapic(), sizeof(kvm_lapic_state)));
  FVMM_TRY(check_size("events", vcpu.events(), sizeof(kvm_vcpu_events)));
  if (vcpu.msrs_size() > static_cast<int>(abi::kMsrsMax)) {
    return Error(Errc::kInvalidArgument, fmt::format("{} MSRs, limit {}", vcpu.msrs_size(), abi::kMsrsMax));
  }
  if (vcpu.tsc_khz() == 0) return Error(Errc::kInvalidArgument, "a TSC of 0 kHz");
  return {};
}

}  // namespace

Status check_state(const v1::MachineState& state, const StateShape& shape) {
  FVMM_TRY(check_version("machine", state.version(), kMachineStateVersion));
  if (static_cast<std::size_t>(state.vcpus_size()) != shape.vcpus) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("state of {} vCPUs for a VM of {}", state.vcpus_size(), shape.vcpus));
  }
  for (int i = 0; i < state.vcpus_size(); ++i) {
    const v1::VcpuState& vcpu = state.vcpus(i);
    if (vcpu.index() != static_cast<std::uint32_t>(i)) {
      return Error(Errc::kInvalidArgument, fmt::format("vCPU {} stands where {} belongs", vcpu.index(), i));
    }
    FVMM_TRY(check_vcpu(vcpu, shape), fmt::format("vCPU {}", i));
    if (vcpu.tsc_khz() != state.vcpus(0).tsc_khz()) {
      return Error(Errc::kInvalidArgument, "vCPUs with different TSC frequencies");
    }
  }
  if (state.vcpus(0).cpuid() != shape.cpuid) {
    return Error(Errc::kInvalidArgument, "the state was saved with another CPUID table than the VM was given");
  }
  FVMM_TRY(check_size("PIC master", state.irqchip_pic_master(), sizeof(kvm_irqchip)));
  FVMM_TRY(check_size("PIC slave", state.irqchip_pic_slave(), sizeof(kvm_irqchip)));
  FVMM_TRY(check_size("IOAPIC", state.irqchip_ioapic(), sizeof(kvm_irqchip)));
  return check_size("PIT", state.pit2(), sizeof(kvm_pit_state2));
}

}  // namespace fvmm::vmm
