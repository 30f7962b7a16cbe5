// /dev/kvm: the system handle and what this host's KVM can do.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "vmm/kvm_abi.h"

namespace fvmm::vmm {

/// One ioctl, retried on EINTR; the error names the request. Returns the kernel's non-negative answer.
Result<int> kvm_ioctl(int fd, unsigned long request, std::string_view name, void* argument = nullptr);
Result<int> kvm_ioctl(int fd, unsigned long request, std::string_view name, unsigned long argument);

/// What differs between hosts and decides how state is saved. Immutable after Kvm::open.
struct KvmFeatures {
  bool pvm = false;     // /sys/module/kvm_pvm: guest kernel code is emulated
  bool sregs2 = false;  // KVM_CAP_SREGS2
  bool manual_dirty_log = false;
  bool dirty_log_initially_set = false;  // KVM_DIRTY_LOG_INITIALLY_SET: a log turned on protects nothing at once
  bool tsc_scaling = false;              // KVM_CAP_TSC_CONTROL
  bool clock_realtime = false;           // KVM_CAP_ADJUST_CLOCK offers KVM_CLOCK_REALTIME
  bool exception_payload = false;        // KVM_CAP_EXCEPTION_PAYLOAD: a pending exception is told from an injected one
  bool triple_fault_event = false;       // KVM_CAP_X86_TRIPLE_FAULT_EVENT: a pending triple fault can be saved
  std::uint32_t xsave_bytes = 4096;
  std::uint32_t run_bytes = 0;  // of the kvm_run mapping
};

/// The open /dev/kvm. Thread: any.
class Kvm {
 public:
  /// kUnavailable with the fix when /dev/kvm is missing, unreadable, or of another API version.
  static Result<Kvm> open();
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const KvmFeatures& features() const { return features_; }
  [[nodiscard]] int check_extension(unsigned long capability) const;  // 0 when absent
  Result<UniqueFd> create_vm() const;
  /// KVM_GET_SUPPORTED_CPUID.
  Result<std::vector<kvm_cpuid_entry2>> supported_cpuid() const;
  /// KVM_GET_MSR_INDEX_LIST: the MSRs that a migration must carry.
  Result<std::vector<std::uint32_t>> migratable_msrs() const;

 private:
  Kvm(UniqueFd fd, KvmFeatures features) : fd_(std::move(fd)), features_(features) {}
  UniqueFd fd_;
  KvmFeatures features_;
};

}  // namespace fvmm::vmm
