#include "vmm/doorbells.h"

#include "base/check.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {
namespace {

Result<int> set(int vm_fd, std::uint64_t address, std::uint32_t value, int event, std::uint32_t flags) {
  kvm_ioeventfd doorbell{};
  doorbell.datamatch = value;
  doorbell.addr = address;
  doorbell.len = sizeof value;
  doorbell.fd = event;
  doorbell.flags = KVM_IOEVENTFD_FLAG_DATAMATCH | flags;
  return kvm_ioctl(vm_fd, KVM_IOEVENTFD, "KVM_IOEVENTFD", &doorbell);
}

}  // namespace

Status KvmDoorbells::bind(std::uint64_t address, std::uint32_t value, int event) {
  FVMM_TRY(set(vm_fd_, address, value, event, 0));
  return {};
}

void KvmDoorbells::unbind(std::uint64_t address, std::uint32_t value, int event) {
  FVMM_CHECK(set(vm_fd_, address, value, event, KVM_IOEVENTFD_FLAG_DEASSIGN).ok(), "only what was bound is unbound");
}

}  // namespace fvmm::vmm
