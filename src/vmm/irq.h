#pragma once

#include "devices/device.h"

namespace fvmm::vmm {

/// One pin of the in-kernel irqchip, driven with KVM_IRQ_LINE. Thread: any.
class KvmIrqLine final : public devices::IrqLine {
 public:
  KvmIrqLine(int vm_fd, unsigned gsi) : vm_fd_(vm_fd), gsi_(gsi) {}
  void set(bool level) override;

 private:
  int vm_fd_;
  unsigned gsi_;
};

}  // namespace fvmm::vmm
