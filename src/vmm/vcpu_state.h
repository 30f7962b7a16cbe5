// Everything a guest could notice of one vCPU, out of KVM and back in.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "proto/state.pb.h"
#include "vmm/cpuid.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

inline constexpr std::uint32_t kVcpuStateVersion = 1;
inline constexpr std::uint32_t kTscTolerancePpm = 250;  // KVM's own: within it no scaling is needed (tsc_tolerance_ppm)

/// What is known of a vCPU descriptor before it runs: the MSRs worth carrying, and how its TSC is reached.
struct VcpuProfile {
  std::vector<std::uint32_t> msrs;  // readable here, without those derived from others (IA32_TSC)
  bool tsc_offset = false;          // KVM_VCPU_TSC_OFFSET works
  bool tsc_fixed = false;           // the guest reads the host's TSC, whatever is set (KVM-PVM)
};

/// Probes a fresh vCPU. Cost: about 100 us, so once, when the worker is made.
Result<VcpuProfile> probe_vcpu(int vcpu_fd, std::span<const std::uint32_t> migratable_msrs);

/// Sets CPUID; before the first run and before state is loaded.
Status set_cpuid(int vcpu_fd, const CpuidTable& table);
/// The TSC frequency of this vCPU in kHz.
Result<std::uint32_t> tsc_khz(int vcpu_fd);
/// Pure: whether a guest whose TSC runs at `guest_khz` can run where it runs at `host_khz`. Two hosts of one model
/// differ by some kHz, which their calibration gives them; more than that needs scaling.
bool tsc_khz_fits(std::uint32_t guest_khz, std::uint32_t host_khz, bool scaling);
/// KVM_SET_TSC_KHZ, before the vCPU runs.
Status set_tsc_khz(int vcpu_fd, std::uint32_t khz);

/// Saves a parked vCPU whose last exit has been completed. Thread: the vCPU's own.
Result<v1::VcpuState> save_vcpu(int vcpu_fd, const KvmFeatures& features, const VcpuProfile& profile);
/// Loads it into a vCPU that has not run, whose CPUID and TSC are already set: a TSC deadline is armed against the TSC
/// of that moment. Sizes have been checked (state_check.h). kFailedPrecondition for an MSR that this host cannot set.
/// Thread: the vCPU's own.
Status load_vcpu(int vcpu_fd, const KvmFeatures& features, const v1::VcpuState& state);

/// The XSAVE area as KVM gives it; at least the legacy area and the header.
Result<std::string> get_xsave(int vcpu_fd, const KvmFeatures& features);
Status set_xsave(int vcpu_fd, const KvmFeatures& features, std::string bytes);
Result<std::uint64_t> get_tsc_offset(int vcpu_fd);
Status set_tsc_offset(int vcpu_fd, std::uint64_t offset);
Status set_tsc(int vcpu_fd, std::uint64_t value);  // where offsets cannot be set
Result<std::uint64_t> get_tsc(int vcpu_fd);

}  // namespace fvmm::vmm
