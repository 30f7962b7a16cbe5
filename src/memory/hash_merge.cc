#include "memory/hash_merge.h"

#include <functional>
#include <queue>
#include <utility>

namespace fvmm::memory {

Result<v1::StoredFile> merge_hashes(std::vector<HashCursor> tables, ZeroPages zero, HashTableWriter& out) {
  using Head =
      std::pair<PageIndex, std::size_t>;  // page of a table's entry, the table: of one page the newest is least
  std::priority_queue<Head, std::vector<Head>, std::greater<>> heads;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    if (tables[i].entry()) heads.emplace(tables[i].entry()->page, i);
  }
  PageIndex next = 0;  // pages before it are decided
  while (!heads.empty()) {
    const auto [page, index] = heads.top();
    heads.pop();
    const HashEntry entry = *tables[index].entry();
    const bool wanted = zero == ZeroPages::kKeep || entry.hash != zero_page_hash();
    if (page >= next && wanted) FVMM_TRY(out.add(page, entry.hash));
    next = page + 1;
    FVMM_TRY(tables[index].advance());
    if (tables[index].entry()) heads.emplace(tables[index].entry()->page, index);
  }
  return out.finish();
}

}  // namespace fvmm::memory
