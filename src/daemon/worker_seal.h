// How a worker writes pages into a template, wherever they lie.
#pragma once

#include "memory/template_store.h"

namespace fvmm::daemon {

inline constexpr std::uint64_t kTemplateChunkPages = 1024;  // 4 MiB a call

/// Writes the pages, from guest memory or from where they were captured, and the state that belongs to them.
template <class Source>
Result<memory::TemplateInfo> seal_pages(memory::TemplateWriter& writer, const memory::Bitmap& pages,
                                        const Source& source, const v1::MachineState& state) {
  for (const memory::PageRange& range : pages.ranges(kTemplateChunkPages)) {
    FVMM_TRY(writer.add_pages(range.first, source.pages(range)));
  }
  FVMM_TRY(writer.set_machine_state(state));
  return writer.seal();
}

}  // namespace fvmm::daemon
