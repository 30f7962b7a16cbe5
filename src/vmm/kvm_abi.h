// linux/kvm.h for C++: structures with flexible arrays, and their ioctl numbers, with the sizes C gives them.
//
// Debian 12's __DECLARE_FLEX_ARRAY puts an empty struct of size 1 in front in C++, so sizeof and ioctl numbers of
// kvm_cpuid2, kvm_msrs, kvm_msr_list and kvm_xsave come out wrong there. These are declared here with fixed maxima.
#pragma once

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace fvmm::vmm::abi {

inline constexpr std::size_t kCpuidEntriesMax = 256;
inline constexpr std::size_t kMsrsMax = 1024;
inline constexpr std::size_t kXsaveBytesMin = 4096;

struct Cpuid2 {
  std::uint32_t nent;
  std::uint32_t padding;
  std::array<kvm_cpuid_entry2, kCpuidEntriesMax> entries;
};
static_assert(offsetof(Cpuid2, entries) == 8 && sizeof(kvm_cpuid_entry2) == 40);

struct Msrs {
  std::uint32_t nmsrs;
  std::uint32_t pad;
  std::array<kvm_msr_entry, kMsrsMax> entries;
};
static_assert(offsetof(Msrs, entries) == 8 && sizeof(kvm_msr_entry) == 16);

struct MsrList {
  std::uint32_t nmsrs;
  std::array<std::uint32_t, kMsrsMax> indices;
};
static_assert(offsetof(MsrList, indices) == 4);

// _IOC takes the size of the C structure's fixed part.
inline constexpr unsigned long kGetMsrIndexList = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x02, 4);
inline constexpr unsigned long kGetSupportedCpuid = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, 8);
inline constexpr unsigned long kGetMsrs = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x88, 8);
inline constexpr unsigned long kSetMsrs = _IOC(_IOC_WRITE, KVMIO, 0x89, 8);
inline constexpr unsigned long kSetCpuid2 = _IOC(_IOC_WRITE, KVMIO, 0x90, 8);
inline constexpr unsigned long kGetXsave = _IOC(_IOC_READ, KVMIO, 0xa4, 4096);
inline constexpr unsigned long kSetXsave = _IOC(_IOC_WRITE, KVMIO, 0xa5, 4096);
inline constexpr unsigned long kGetXsave2 = _IOC(_IOC_READ, KVMIO, 0xcf, 4096);

}  // namespace fvmm::vmm::abi
