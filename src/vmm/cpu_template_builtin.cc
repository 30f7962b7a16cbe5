// The templates that every host has, written as a file would be.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>

#include "base/check.h"
#include "vmm/cpu_template.h"

namespace fvmm::vmm {
namespace {

struct Builtin {
  std::string_view name, json;
};

constexpr std::array<Builtin, 3> kBuiltins{{
    {"host", R"json({"version": 1, "description": "all that this host's KVM supports"})json"},
    {"baseline", R"json({
  "version": 1,
  "description": "x86-64-v2 with AES and RDRAND, no state beyond SSE: any server since 2012",
  "only": [
    {"word": "1.ecx", "features": "sse3 pclmulqdq ssse3 cx16 pcid sse4_1 sse4_2 x2apic popcnt tsc_deadline_timer aes xsave rdrand hypervisor"},
    {"word": "7.ebx", "features": "fsgsbase smep erms"},
    {"word": "7.ecx", "features": ""},
    {"word": "7.edx", "features": "md_clear spec_ctrl intel_stibp arch_capabilities spec_ctrl_ssbd"},
    {"word": "7.1.eax", "features": ""},
    {"word": "0xd.eax", "features": "xstate_x87 xstate_sse"},
    {"word": "0xd.1.eax", "features": "xsaveopt"},
    {"word": "0x80000001.ecx", "features": "lahf_lm"},
    {"word": "0x80000001.edx", "features": "0x2993fbff"},
    {"word": "0x80000007.edx", "features": "invariant_tsc"},
    {"word": "0x80000008.ebx", "features": "amd_ibpb amd_ibrs amd_stibp amd_ssbd"},
    {"word": "0x40000001.eax", "features": "kvm_clock_old kvm_clock kvm_clocksource_stable"}
  ],
  "drop_leaves": ["0xa", "0x7/1", "0x7/2"],
  "max_leaf": "0xd",
  "max_extended_leaf": "0x80000008"
})json"},
    // cmpxchg16b is not emulated, and the hypercalls behind PV unhalt, async page faults, PV TLB flush, PV IPI and PV
    // sched-yield hang KVM_RUN. With xsaveerptr Linux needs no fnclex and fild in its FPU restore.
    {"pvm", R"json({
  "version": 1,
  "description": "what KVM-PVM can do for guest code at CPL 0",
  "without": ["cx16", "kvm_async_pf", "kvm_pv_unhalt", "kvm_pv_tlb_flush", "kvm_async_pf_vmexit", "kvm_pv_send_ipi",
              "kvm_pv_sched_yield", "kvm_async_pf_int"],
  "give": ["xsaveerptr"]
})json"},
}};

/// Parsed once: each VM that is created, or comes in, names one.
const std::vector<v1::CpuTemplate>& builtins() {
  static const auto all = [] {
    std::vector<v1::CpuTemplate> parsed;
    for (const Builtin& builtin : kBuiltins) {
      auto cpu = parse_cpu_template(builtin.name, builtin.json);
      FVMM_CHECK(cpu.ok(), "a built-in CPU template is wrong");
      parsed.push_back(std::move(*cpu));
    }
    return parsed;
  }();
  return all;
}

}  // namespace

std::vector<std::string> builtin_cpu_template_names() {
  std::vector<std::string> names;
  for (const Builtin& builtin : kBuiltins) names.emplace_back(builtin.name);
  return names;
}

Result<v1::CpuTemplate> builtin_cpu_template(std::string_view name) {
  for (const v1::CpuTemplate& cpu : builtins()) {
    if (cpu.name() == name) return cpu;
  }
  return Error(Errc::kNotFound, fmt::format("there is no CPU template \"{}\"; built in are {}", name,
                                            fmt::join(builtin_cpu_template_names(), ", ")));
}

}  // namespace fvmm::vmm
