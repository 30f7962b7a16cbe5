// Deltas over a stored template, and the memory they must show.
#pragma once

#include <algorithm>
#include <map>

#include "support/stored_template.h"

namespace fvmm::testing {

/// A page whose every byte says which write it was; mark 0 is a page of zeros.
inline std::vector<std::byte> marked_page(unsigned mark) {
  std::vector<std::byte> page(kPageBytes);
  for (std::size_t i = 0; i < page.size() && mark != 0; ++i)
    page[i] = static_cast<std::byte>(mark + i % 7 * (mark >> 8));
  return page;
}

using Writes = std::map<memory::PageIndex, unsigned>;  // page, mark

inline void write_into(const Writes& writes, std::vector<std::byte>& memory) {
  for (const auto& [page, mark] : writes) {
    std::ranges::copy(marked_page(mark), memory.begin() + static_cast<std::ptrdiff_t>(page * kPageBytes));
  }
}

/// begin_delta, page by page, machine state, seal.
inline Result<memory::TemplateInfo> store_delta(memory::TemplateStore& store,
                                                const memory::TemplateStore::NewDelta& wanted, const Writes& writes,
                                                const memory::Digest* expected = nullptr) {
  memory::TemplateWriter writer = FVMM_TRY(store.begin_delta(wanted));
  for (const auto& [page, mark] : writes) FVMM_TRY(writer.add_pages(page, marked_page(mark)));
  FVMM_TRY(writer.set_machine_state(test_machine_state()));
  return writer.seal(expected);
}

inline memory::TemplateStore::NewDelta delta_over(const std::string& parent) {
  memory::TemplateStore::NewDelta wanted;
  wanted.parent = parent;
  return wanted;
}

/// Resolved content without a mapping; empty when something fails.
inline std::vector<std::byte> content_of(const memory::OpenTemplate& opened) {
  std::vector<std::byte> memory(opened.info().memory_bytes);
  const bool read = opened.read_pages({.first = 0, .count = memory.size() / kPageBytes}, memory).ok();
  return read ? memory : std::vector<std::byte>();
}

inline std::vector<std::byte> content_of(const memory::TemplateStore& store, const std::string& name) {
  const auto opened = memory::OpenTemplate::open(store.directory() / name);
  return opened ? content_of(*opened) : std::vector<std::byte>();
}

}  // namespace fvmm::testing
