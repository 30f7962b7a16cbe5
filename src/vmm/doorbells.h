// Guest writes that wake an eventfd inside the kernel, without an exit to us: KVM_IOEVENTFD on MMIO.
#pragma once

#include "devices/virtio_device.h"

namespace fvmm::vmm {

class KvmDoorbells final : public devices::Doorbells {
 public:
  explicit KvmDoorbells(int vm_fd) : vm_fd_(vm_fd) {}
  Status bind(std::uint64_t address, std::uint32_t value, int event) override;
  void unbind(std::uint64_t address, std::uint32_t value, int event) override;

 private:
  int vm_fd_;
};

}  // namespace fvmm::vmm
