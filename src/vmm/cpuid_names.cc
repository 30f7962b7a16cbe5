#include "vmm/cpuid_names.h"

#include <array>

namespace fvmm::vmm {
namespace {

// Bit 0 first, '-' for a bit without a name. Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
struct Word {
  std::string_view name;
  std::string_view bits;
};
constexpr std::array<Word, 7> kWords{{
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
}};

}  // namespace

std::string_view feature_name(std::string_view word, unsigned bit) {
  for (const Word& known : kWords) {
    if (known.name != word) continue;
    std::string_view rest = known.bits;
    for (unsigned at = 0; at < bit && !rest.empty(); ++at) {
      const std::size_t space = rest.find(' ');
      rest.remove_prefix(space == std::string_view::npos ? rest.size() : space + 1);
    }
    const std::string_view name = rest.substr(0, rest.find(' '));
    return name == "-" ? std::string_view() : name;
  }
  return {};
}

}  // namespace fvmm::vmm
