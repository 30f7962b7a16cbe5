// The CPUID table that a VM's vCPUs get, and the check that a destination can carry a guest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "proto/config.pb.h"
#include "vmm/cpuid_words.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

/// The name of the CPU template used when none is named: "pvm" on a PVM host, else "host".
std::string_view default_cpu_template(const KvmFeatures& features);
/// The template a VM was created with: the text it carries, or the built-in of that name, or the default here.
/// kNotFound; kInvalidArgument for a text that this build does not understand.
Result<v1::CpuTemplate> cpu_template_of(const v1::VmConfig& config, const KvmFeatures& features);

/// `supported` (KVM_GET_SUPPORTED_CPUID) as the template leaves it, without what a saved state does not hold (VMX, SVM,
/// SGX), with the hypervisor bit, the deadline timer and the timing leaf. kFailedPrecondition naming a required feature
/// that this host lacks.
Result<CpuidTable> build_cpuid(const v1::CpuTemplate& cpu, const CpuidTable& supported, std::uint32_t tsc_khz);
/// The same of a built-in template.
Result<CpuidTable> build_cpuid(std::string_view builtin, const CpuidTable& supported, std::uint32_t tsc_khz);

/// The copy for one vCPU of `vcpus`: APIC ids, and one package of as many cores of one thread (leaves 1, 4, 0xB, 0x1F,
/// AMD's 0x80000008, 0x8000001D and 0x8000001E).
CpuidTable for_vcpu(CpuidTable table, std::uint32_t apic_id, std::uint32_t vcpus);

/// kFailedPrecondition naming the first feature bit the guest was given and `host` lacks, or the vendors when they
/// differ.
Status check_cpuid_fits(const CpuidTable& guest, const CpuidTable& host);

std::string pack_cpuid(const CpuidTable& table);          // bytes for protobuf
Result<CpuidTable> unpack_cpuid(std::string_view bytes);  // kInvalidArgument for a bad size

}  // namespace fvmm::vmm
