// The guest's own page tables, read by the VMM.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

namespace fvmm::vmm {

struct PagingState {
  std::uint64_t cr3 = 0;
  bool five_levels = false;  // CR4.LA57
  bool user_pages = true;    // kernel code may reach them: not SMAP, or EFLAGS.AC
};

/// Eight bytes of guest-physical memory; nothing where there is no RAM.
using ReadTableEntry = std::function<std::optional<std::uint64_t>(std::uint64_t address)>;

/// Guest-physical address behind a canonical linear one, in 64-bit mode, for kernel code. Pure but for `read`. Nothing
/// where the access would fault or change the tables: not present, a user page that SMAP forbids, not writable, or an
/// accessed or dirty bit that would have to be set first. Intel SDM vol. 3A, 4.5.
std::optional<std::uint64_t> walk_pages(const PagingState& paging, std::uint64_t linear, bool write,
                                        const ReadTableEntry& read);

}  // namespace fvmm::vmm
