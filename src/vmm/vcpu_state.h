// Everything a guest could notice of one vCPU, out of KVM and back in.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "proto/state.pb.h"
#include "vmm/cpuid.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

/// What is known of a vCPU descriptor before it runs: the MSRs worth carrying, and how its TSC is reached.
struct VcpuProfile {
  std::vector<std::uint32_t> msrs;  // readable here, without those derived from others (IA32_TSC)
  bool tsc_offset = false;          // KVM_VCPU_TSC_OFFSET works
};

/// Probes a fresh vCPU. Cost: about 100 us, so once, when the worker is made.
Result<VcpuProfile> probe_vcpu(int vcpu_fd, std::span<const std::uint32_t> migratable_msrs);

/// Sets CPUID; before the first run and before state is loaded.
Status set_cpuid(int vcpu_fd, const CpuidTable& table);
/// The TSC frequency of this vCPU in kHz.
Result<std::uint32_t> tsc_khz(int vcpu_fd);

/// Saves a parked vCPU whose last exit has been completed. Thread: the vCPU's own.
Result<v1::VcpuState> save_vcpu(int vcpu_fd, const KvmFeatures& features, const VcpuProfile& profile);
/// Loads it into a fresh vCPU whose CPUID is already set. kInvalidArgument for a structure of the wrong size.
/// The TSC comes later, with the clocks (clock.h). Thread: the vCPU's own.
Status load_vcpu(int vcpu_fd, const KvmFeatures& features, const v1::VcpuState& state);

Result<std::uint64_t> get_tsc_offset(int vcpu_fd);
Status set_tsc_offset(int vcpu_fd, std::uint64_t offset);
Status set_tsc(int vcpu_fd, std::uint64_t value);  // where offsets cannot be set
Result<std::uint64_t> get_tsc(int vcpu_fd);

}  // namespace fvmm::vmm
