// KVM's dirty log of one VM's memslots, as a DirtySource.
#pragma once

#include <vector>

#include "memory/layout.h"
#include "memory/tracking.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

/// KVM_GET_DIRTY_LOG, then KVM_CLEAR_DIRTY_LOG (manual protect) for what was set. The log is a flag of the memslots, so
/// they are made here. Owner: the thread that owns the VM.
class DirtyLog final : public memory::SwitchedLog {
 public:
  /// Guest RAM lies at `host_base`, in linear order.
  DirtyLog(int vm_fd, memory::Layout layout, const std::byte* host_base, const KvmFeatures& features);
  /// The memslots, logged from their first page. Once, before anything else.
  Status create();
  /// Also while the guest runs; it is on when this returns. Where KVM can (KVM_DIRTY_LOG_INITIALLY_SET) nothing is
  /// write-protected now, every page counts as written, and the first harvest protects it in chunks.
  Status enable() override;
  /// Cheap while nothing is mapped; else KVM walks all that is (86 to 197 ms at 8 GiB).
  Status disable() override;
  /// What GET returned is in `out` even when a CLEAR fails, so no bit is ever lost.
  Status harvest(memory::Bitmap& out) override;

 private:
  Status set_slots(std::uint32_t flags);
  Status harvest_slot(unsigned slot, memory::Bitmap& out);
  Status clear_chunks(unsigned slot, std::uint64_t pages);

  int vm_fd_;
  memory::Layout layout_;
  const std::byte* host_base_;
  bool manual_protect_;
  bool initially_set_;
  std::vector<std::uint64_t> words_;  // of the slot under way
};

}  // namespace fvmm::vmm
