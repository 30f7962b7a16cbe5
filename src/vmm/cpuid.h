// CPU templates: named masks over what the host's KVM supports, and the check that a destination can carry a guest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

using CpuidTable = std::vector<kvm_cpuid_entry2>;

/// Names a user may give: "host", "baseline", "pvm".
std::vector<std::string> cpu_template_names();
/// The template used when none is named: "pvm" on a PVM host, else "host".
std::string_view default_cpu_template(const KvmFeatures& features);

/// The table one VM's vCPUs get. No template offers what a saved state does not hold: VMX, SVM, SGX. Unknown names:
/// kInvalidArgument listing the known ones.
///   host      what KVM supports
///   baseline  of that, x86-64-v2 plus AES and RDRAND: runs on any server since 2012
///             (extended state beyond SSE, performance counters and later leaves are not there either)
///   pvm       host without what KVM-PVM cannot do at CPL 0 (cx16, PV unhalt, IPI, TLB flush, async faults)
Result<CpuidTable> build_cpuid(std::string_view name, const CpuidTable& supported, std::uint32_t tsc_khz);

/// The copy for one vCPU of `vcpus`: APIC ids, and one package of as many cores of one thread (leaves 1, 4, 0xB, 0x1F,
/// AMD's 0x80000008, 0x8000001D and 0x8000001E).
CpuidTable for_vcpu(CpuidTable table, std::uint32_t apic_id, std::uint32_t vcpus);

/// kFailedPrecondition naming the first feature bit the guest was given and `host` lacks, or the vendors when they
/// differ.
Status check_cpuid_fits(const CpuidTable& guest, const CpuidTable& host);

std::string pack_cpuid(const CpuidTable& table);          // bytes for protobuf
Result<CpuidTable> unpack_cpuid(std::string_view bytes);  // kInvalidArgument for a bad size

}  // namespace fvmm::vmm
