// KVM's dirty log of one VM's memslots, as a DirtySource.
#pragma once

#include <vector>

#include "memory/dirty.h"
#include "memory/layout.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

/// KVM_GET_DIRTY_LOG, then KVM_CLEAR_DIRTY_LOG (manual protect) for what was set. Owner: the thread that owns the VM.
class DirtyLog final : public memory::DirtySource {
 public:
  DirtyLog(int vm_fd, memory::Layout layout, bool manual_protect);
  /// What GET returned is in `out` even when a CLEAR fails, so no bit is ever lost.
  Status harvest(memory::Bitmap& out) override;

 private:
  Status harvest_slot(unsigned slot, memory::Bitmap& out);
  Status clear_chunks(unsigned slot, std::uint64_t pages);

  int vm_fd_;
  memory::Layout layout_;
  bool manual_protect_;
  std::vector<std::uint64_t> words_;  // of the slot under way
};

}  // namespace fvmm::vmm
