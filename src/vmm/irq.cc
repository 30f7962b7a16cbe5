#include "vmm/irq.h"

#include "base/check.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

void KvmIrqLine::set(bool level) {
  kvm_irq_level line{};
  line.irq = gsi_;
  line.level = level ? 1 : 0;
  FVMM_CHECK(kvm_ioctl(vm_fd_, KVM_IRQ_LINE, "KVM_IRQ_LINE", &line).ok(), "a pin of an existing irqchip");
}

}  // namespace fvmm::vmm
