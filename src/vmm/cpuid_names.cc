#include "vmm/cpuid_names.h"

#include <algorithm>
#include <array>

namespace fvmm::vmm {
namespace {

// Bit 0 first, '-' for a bit without a name; what AMD repeats of 1.edx in 0x80000001.edx has none. Intel SDM vol. 2A,
// CPUID; AMD APM vol. 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst for KVM's own.
struct Word {
  std::string_view name;
  std::string_view bits;
};
constexpr std::array<Word, 13> kWords{{
    {"1.ecx",
     "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cnxt_id sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 "
     "sse4_2 "
     "x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor"},
    {"1.edx",
     "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse "
     "sse2 ss "
     "ht tm ia64 pbe"},
    {"7.ebx",
     "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f "
     "avx512dq "
     "rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl"},
    {"7.ecx",
     "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni avx512_bitalg "
     "tme "
     "avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc pks"},
    {"7.edx",
     "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize - tsxldtrk - - "
     "arch_lbr ibt - "
     "amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities "
     "spec_ctrl_ssbd"},
    {"0x80000001.ecx",
     "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 "
     "tce - "
     "nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx - -"},
    {"0x80000001.edx",
     "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow"},
    {"7.1.eax",
     "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc - - - - fred lkgs "
     "wrmsrns - "
     "amx_fp16 hreset avx_ifma - - lam - - - - -"},
    {"0xd.eax",
     "xstate_x87 xstate_sse xstate_avx xstate_bndregs xstate_bndcsr xstate_opmask xstate_zmm_hi256 xstate_hi16_zmm - "
     "xstate_pkru - - - - - - - xstate_xtilecfg xstate_xtiledata xstate_apx - - - - - - - - - - - -"},
    {"0xd.1.eax", "xsaveopt xsavec xgetbv1 xsaves xfd - - - - - - - - - - - - - - - - - - - - - - - - - - -"},
    {"0x80000007.edx", "- - - - - - - - invariant_tsc - - - - - - - - - - - - - - - - - - - - - - -"},
    {"0x80000008.ebx",
     "clzero irperf xsaveerptr invlpgb rdpru - - - mcommit wbnoinvd - - amd_ibpb wbinvd_int amd_ibrs amd_stibp - "
     "amd_stibp_always_on - amd_ibrs_same_mode - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no "
     "amd_ibpb_ret -"},
    {"0x40000001.eax",
     "kvm_clock_old kvm_nop_io_delay kvm_mmu_op kvm_clock kvm_async_pf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt - "
     "kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield kvm_async_pf_int "
     "kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - kvm_clocksource_stable - - - - - - -"},
}};

/// The text in front of the next space, which is taken off `rest`.
std::string_view take_name(std::string_view& rest) {
  const std::string_view name = rest.substr(0, rest.find(' '));
  rest.remove_prefix(std::min(name.size() + 1, rest.size()));
  return name;
}

}  // namespace

std::string_view feature_name(std::string_view word, unsigned bit) {
  for (const Word& known : kWords) {
    if (known.name != word) continue;
    std::string_view rest = known.bits;
    for (unsigned at = 0; at < bit; ++at) take_name(rest);
    const std::string_view name = take_name(rest);
    return name == "-" ? std::string_view() : name;
  }
  return {};
}

std::optional<FeatureBit> find_feature(std::string_view name) {
  if (name.empty() || name == "-") return std::nullopt;
  for (const Word& word : kWords) {
    std::string_view rest = word.bits;
    for (unsigned bit = 0; !rest.empty(); ++bit) {
      if (take_name(rest) == name) return FeatureBit{word.name, bit};
    }
  }
  return std::nullopt;
}

}  // namespace fvmm::vmm
