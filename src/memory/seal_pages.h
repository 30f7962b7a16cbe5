// How pages are written into a generation, wherever they lie.
#pragma once

#include "memory/dirty.h"
#include "memory/template_writer.h"

namespace fvmm::memory {

inline constexpr std::uint64_t kTemplateChunkPages = 1024;  // 4 MiB a call

/// Writes the pages, from guest memory or from where they were captured, and the state that belongs to them.
template <class Source>
Result<TemplateInfo> seal_pages(TemplateWriter& writer, const Bitmap& pages, const Source& source,
                                const v1::MachineState& state) {
  for (const PageRange& range : pages.ranges(kTemplateChunkPages)) {
    FVMM_TRY(writer.add_pages(range.first, source.pages(range)));
  }
  FVMM_TRY(writer.set_machine_state(state));
  return writer.seal();
}

}  // namespace fvmm::memory
