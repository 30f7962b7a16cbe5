#include "vmm/page_walk.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint64_t kPresent = 1U << 0;
constexpr std::uint64_t kWritable = 1U << 1;
constexpr std::uint64_t kUser = 1U << 2;
constexpr std::uint64_t kAccessed = 1U << 5;
constexpr std::uint64_t kDirty = 1U << 6;
constexpr std::uint64_t kLarge = 1U << 7;
constexpr std::uint64_t kAddressMask = 0x000FFFFFFFFFF000;  // bits 51 to 12
constexpr unsigned kPageShift = 12;
constexpr unsigned kLevelBits = 9;

}  // namespace

std::optional<std::uint64_t> walk_pages(const PagingState& paging, std::uint64_t linear, bool write,
                                        const ReadTableEntry& read) {
  std::uint64_t table = paging.cr3 & kAddressMask;
  bool user = true;  // a page is a user's only when every level says so
  for (unsigned level = paging.five_levels ? 4 : 3;; --level) {
    const unsigned shift = kPageShift + kLevelBits * level;
    const auto entry = read(table + (linear >> shift & 0x1FF) * 8);
    std::uint64_t needed = kPresent | kAccessed | (write ? kWritable : 0);
    const bool leaf = level == 0 || (entry && (*entry & kLarge) != 0);
    if (leaf && level > 2) return std::nullopt;  // 512 GiB pages do not exist
    if (leaf && write) needed |= kDirty;
    if (!entry || (*entry & needed) != needed) return std::nullopt;
    user = user && (*entry & kUser) != 0;
    if (!leaf) {
      table = *entry & kAddressMask;
      continue;
    }
    if (user && !paging.user_pages) return std::nullopt;
    const std::uint64_t inside = (std::uint64_t{1} << shift) - 1;
    return (*entry & kAddressMask & ~inside) | (linear & inside);
  }
}

}  // namespace fvmm::vmm
