#include "vmm/kvm.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <memory>

namespace fvmm::vmm {

Result<int> kvm_ioctl(int fd, unsigned long request, std::string_view name, void* argument) {
  return kvm_ioctl(fd, request, name, reinterpret_cast<unsigned long>(argument));
}

Result<int> kvm_ioctl(int fd, unsigned long request, std::string_view name, unsigned long argument) {
  for (;;) {
    const int answer = ::ioctl(fd, request, argument);
    if (answer >= 0) return answer;
    if (errno != EINTR) return Error(Errc::kIo, std::string(name), errno);
  }
}

int Kvm::check_extension(unsigned long capability) const {
  const int answer = ::ioctl(fd_.get(), KVM_CHECK_EXTENSION, capability);
  return answer > 0 ? answer : 0;
}

Result<Kvm> Kvm::open() {
  UniqueFd fd(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!fd) {
    return Error(Errc::kUnavailable,
                 "open /dev/kvm (is KVM enabled, and is this user in group kvm? see fvmmctl doctor)", errno);
  }
  const int version = FVMM_TRY(kvm_ioctl(fd.get(), KVM_GET_API_VERSION, "KVM_GET_API_VERSION"));
  if (version != KVM_API_VERSION) {
    return Error(Errc::kUnavailable,
                 fmt::format("/dev/kvm has API version {}, this build needs {}", version, KVM_API_VERSION));
  }
  Kvm kvm(std::move(fd), {});
  for (const unsigned long needed :
       {KVM_CAP_USER_MEMORY, KVM_CAP_IRQCHIP, KVM_CAP_PIT2, KVM_CAP_XSAVE, KVM_CAP_XCRS, KVM_CAP_VCPU_EVENTS,
        KVM_CAP_DEBUGREGS, KVM_CAP_MP_STATE, KVM_CAP_IMMEDIATE_EXIT}) {
    if (kvm.check_extension(needed) == 0) {
      return Error(Errc::kUnavailable, fmt::format("/dev/kvm lacks capability {}; see fvmmctl doctor", needed));
    }
  }
  kvm.features_.pvm = ::access("/sys/module/kvm_pvm", F_OK) == 0;
  kvm.features_.sregs2 = kvm.check_extension(KVM_CAP_SREGS2) != 0;
  const int manual = kvm.check_extension(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
  kvm.features_.manual_dirty_log = (manual & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0;
  kvm.features_.dirty_log_initially_set = kvm.features_.manual_dirty_log && (manual & KVM_DIRTY_LOG_INITIALLY_SET) != 0;
  kvm.features_.tsc_scaling = kvm.check_extension(KVM_CAP_TSC_CONTROL) != 0;
  kvm.features_.clock_realtime = (kvm.check_extension(KVM_CAP_ADJUST_CLOCK) & KVM_CLOCK_REALTIME) != 0;
  kvm.features_.exception_payload = kvm.check_extension(KVM_CAP_EXCEPTION_PAYLOAD) != 0;
  kvm.features_.triple_fault_event = kvm.check_extension(KVM_CAP_X86_TRIPLE_FAULT_EVENT) != 0;
  const int xsave = kvm.check_extension(KVM_CAP_XSAVE2);
  kvm.features_.xsave_bytes = xsave > 4096 ? static_cast<std::uint32_t>(xsave) : 4096;
  kvm.features_.run_bytes =
      static_cast<std::uint32_t>(FVMM_TRY(kvm_ioctl(kvm.fd(), KVM_GET_VCPU_MMAP_SIZE, "KVM_GET_VCPU_MMAP_SIZE")));
  return kvm;
}

Result<UniqueFd> Kvm::create_vm() const {
  return UniqueFd(FVMM_TRY(kvm_ioctl(fd(), KVM_CREATE_VM, "KVM_CREATE_VM")));
}

Result<std::vector<kvm_cpuid_entry2>> Kvm::supported_cpuid() const {
  const auto list = std::make_unique<abi::Cpuid2>();
  list->nent = abi::kCpuidEntriesMax;
  FVMM_TRY(kvm_ioctl(fd(), abi::kGetSupportedCpuid, "KVM_GET_SUPPORTED_CPUID", list.get()));
  return std::vector<kvm_cpuid_entry2>(list->entries.begin(), list->entries.begin() + list->nent);
}

Result<std::vector<std::uint32_t>> Kvm::migratable_msrs() const {
  const auto list = std::make_unique<abi::MsrList>();
  list->nmsrs = abi::kMsrsMax;
  FVMM_TRY(kvm_ioctl(fd(), abi::kGetMsrIndexList, "KVM_GET_MSR_INDEX_LIST", list.get()));
  return std::vector<std::uint32_t>(list->indices.begin(), list->indices.begin() + list->nmsrs);
}

}  // namespace fvmm::vmm
