#include "vmm/dirty_log.h"

#include <algorithm>

#include "base/check.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint64_t kClearChunkPages = 64 * kMiB / kPageBytes;  // bounds how long KVM holds its MMU lock
constexpr std::uint64_t kWordsPerChunk = kClearChunkPages / 64;

}  // namespace

DirtyLog::DirtyLog(int vm_fd, memory::Layout layout, const std::byte* host_base, const KvmFeatures& features)
    : vm_fd_(vm_fd),
      layout_(layout),
      host_base_(host_base),
      manual_protect_(features.manual_dirty_log),
      initially_set_(features.dirty_log_initially_set) {
  std::uint64_t longest = 0;
  for (unsigned i = 0; i < layout_.slot_count(); ++i) longest = std::max(longest, layout_.slot(i).bytes / kPageBytes);
  words_.resize((longest + 63) / 64);
}

Status DirtyLog::set_slots(std::uint32_t flags) {
  for (unsigned i = 0; i < layout_.slot_count(); ++i) {
    const memory::Slot slot = layout_.slot(i);
    kvm_userspace_memory_region region{};
    region.slot = i;
    region.flags = flags;
    region.guest_phys_addr = slot.guest_address;
    region.memory_size = slot.bytes;
    region.userspace_addr = reinterpret_cast<std::uint64_t>(host_base_ + slot.ram_offset);
    FVMM_TRY(kvm_ioctl(vm_fd_, KVM_SET_USER_MEMORY_REGION, "KVM_SET_USER_MEMORY_REGION", &region));
  }
  return {};
}

Status DirtyLog::create() {
  return set_slots(KVM_MEM_LOG_DIRTY_PAGES);
}

Status DirtyLog::enable() {
  if (initially_set_) {  // asked for only here: a log that begins with the guest begins empty
    kvm_enable_cap enable{};
    enable.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    enable.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    FVMM_TRY(kvm_ioctl(vm_fd_, KVM_ENABLE_CAP, "KVM_ENABLE_CAP(DIRTY_LOG_INITIALLY_SET)", &enable));
  }
  return set_slots(KVM_MEM_LOG_DIRTY_PAGES);
}

Status DirtyLog::disable() {
  return set_slots(0);
}

Status DirtyLog::harvest(memory::Bitmap& out) {
  for (unsigned slot = 0; slot < layout_.slot_count(); ++slot) FVMM_TRY(harvest_slot(slot, out));
  return {};
}

Status DirtyLog::harvest_slot(unsigned slot, memory::Bitmap& out) {
  const memory::Slot where = layout_.slot(slot);
  const std::uint64_t pages = where.bytes / kPageBytes;
  const std::uint64_t first_word = where.ram_offset / kPageBytes / 64;
  FVMM_CHECK(where.ram_offset / kPageBytes % 64 == 0, "slots start at a whole bitmap word");
  kvm_dirty_log log{};
  log.slot = slot;
  log.dirty_bitmap = words_.data();
  FVMM_TRY(kvm_ioctl(vm_fd_, KVM_GET_DIRTY_LOG, "KVM_GET_DIRTY_LOG", &log));
  const std::uint64_t word_count = (pages + 63) / 64;
  const auto target = out.words();
  for (std::uint64_t i = 0; i < word_count; ++i) target[first_word + i] |= words_[i];
  return manual_protect_ ? clear_chunks(slot, pages) : Status{};
}

Status DirtyLog::clear_chunks(unsigned slot, std::uint64_t pages) {
  for (std::uint64_t first = 0; first < pages; first += kClearChunkPages) {
    const std::uint64_t count = std::min(kClearChunkPages, pages - first);
    std::uint64_t* const chunk = words_.data() + first / 64;
    const std::uint64_t words = std::min(kWordsPerChunk, (count + 63) / 64);
    if (std::all_of(chunk, chunk + words, [](std::uint64_t word) { return word == 0; })) continue;
    kvm_clear_dirty_log clear{};
    clear.slot = slot;
    clear.first_page = first;
    clear.num_pages = static_cast<std::uint32_t>(count);
    clear.dirty_bitmap = chunk;
    FVMM_TRY(kvm_ioctl(vm_fd_, KVM_CLEAR_DIRTY_LOG, "KVM_CLEAR_DIRTY_LOG", &clear));
  }
  return {};
}

}  // namespace fvmm::vmm
