// The guest's page tables as the VMM reads them: sizes of pages, and all that makes an access not plain.
#include "vmm/page_walk.h"

#include <gtest/gtest.h>

#include <map>

namespace fvmm::vmm {
namespace {

constexpr std::uint64_t kKernel = 0x63;  // present, writable, accessed, dirty
constexpr std::uint64_t kLarge = 0x80;

// One path through the tables: level 4 at 0x1000, 3 at 0x2000, 2 at 0x3000, 1 at 0x4000; all indexes 1.
constexpr std::uint64_t kLinear = (1ULL << 39) | (1ULL << 30) | (1ULL << 21) | (1ULL << 12) | 0x123;

class PageWalk : public ::testing::Test {
 protected:
  std::optional<std::uint64_t> walk(bool write = false, std::uint64_t linear = kLinear) {
    return walk_pages(paging_, linear, write, [this](std::uint64_t address) -> std::optional<std::uint64_t> {
      const auto found = entries_.find(address);
      return found == entries_.end() ? std::nullopt : std::optional(found->second);
    });
  }
  PagingState paging_{.cr3 = 0x1000, .five_levels = false, .user_pages = true};
  std::map<std::uint64_t, std::uint64_t> entries_{
      {0x1008, 0x2000 | kKernel}, {0x2008, 0x3000 | kKernel}, {0x3008, 0x4000 | kKernel}, {0x4008, 0x5000 | kKernel}};
};

TEST_F(PageWalk, ThreeSizesOfPages) {
  EXPECT_EQ(walk(), 0x5123U);
  entries_[0x3008] = 0x600000 | kKernel | kLarge;
  EXPECT_EQ(walk(), 0x600000U + (kLinear & 0x1fffff));
  entries_[0x2008] = 0x40000000 | kKernel | kLarge;
  EXPECT_EQ(walk(true), 0x40000000U + (kLinear & 0x3fffffff));
  entries_[0x1008] |= kLarge;
  EXPECT_FALSE(walk()) << "there is no larger one";
}

TEST_F(PageWalk, HighBitsOfEntriesAreNoAddress) {
  entries_[0x4008] |= 1ULL << 63 | 1ULL << 58;  // NX, ignored
  paging_.cr3 |= 0x018;                         // PWT, PCD
  EXPECT_EQ(walk(), 0x5123U);
}

TEST_F(PageWalk, FiveLevels) {
  paging_ = {.cr3 = 0x9000, .five_levels = true, .user_pages = true};
  entries_[0x9000] = 0x1000 | kKernel;
  EXPECT_EQ(walk(), 0x5123U);
  EXPECT_FALSE(walk(false, kLinear | 1ULL << 48));
}

TEST_F(PageWalk, EachBitAtEachLevel) {
  for (const std::uint64_t at : {0x1008U, 0x2008U, 0x3008U, 0x4008U}) {
    const std::uint64_t good = entries_[at];
    entries_[at] = good & ~1ULL;
    EXPECT_FALSE(walk()) << "not present, " << at;
    entries_[at] = good & ~0x20ULL;
    EXPECT_FALSE(walk()) << "not accessed, " << at;
    entries_[at] = good & ~2ULL;
    EXPECT_TRUE(walk()) << at;
    EXPECT_FALSE(walk(true)) << "not writable, " << at;
    entries_[at] = good & ~0x40ULL;
    EXPECT_TRUE(walk()) << at;
    EXPECT_EQ(walk(true).has_value(), at != 0x4008) << "only the page's own dirty bit counts";
    entries_.erase(at);
    EXPECT_FALSE(walk()) << "no RAM there, " << at;
    entries_[at] = good;
  }
}

TEST_F(PageWalk, UserPagesOnlyWhereSmapAllows) {
  for (auto& [at, entry] : entries_) entry |= 4;
  EXPECT_TRUE(walk());
  paging_.user_pages = false;
  EXPECT_FALSE(walk());
  entries_[0x1008] &= ~4ULL;
  EXPECT_TRUE(walk()) << "one level without the bit makes it the kernel's";
}

}  // namespace
}  // namespace fvmm::vmm
