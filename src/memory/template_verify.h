// Reads a template's memory back and compares it with the hashes. Internal to the store's own files.
#pragma once

#include "base/result.h"
#include "memory/template_store.h"

namespace fvmm::memory {

/// Every page of `memory` against `hashes`; pages without a hash, holes included, must be zero. Findings are in the
/// report; an error only when the work could not be done.
/// @param memory, hashes  open for reading; not closed
Result<TemplateStore::VerifyReport> verify_memory(int memory, int hashes, const v1::TemplateManifest& manifest);

}  // namespace fvmm::memory
