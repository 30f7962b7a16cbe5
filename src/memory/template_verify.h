// Reads a template's memory back and compares it with the hashes. Internal to the store's own files.
#pragma once

#include <string>

#include "base/result.h"
#include "memory/template_store.h"

namespace fvmm::memory {

/// Every page of `memory` against `hashes`; pages without a hash, holes included, must be zero. Findings are in the
/// report; an error only when the work could not be done.
/// @param memory, hashes  open for reading; not closed
Result<TemplateStore::VerifyReport> verify_memory(int memory, int hashes, const v1::TemplateManifest& manifest);
/// Every page of a delta's `pages` against `hashes`, zero pages included, and its digest from the parent's (unless it
/// is squashed: check_folded()).
Result<TemplateStore::VerifyReport> verify_pages(int pages, int hashes, const v1::TemplateManifest& manifest);
/// Of what was folded or squashed: the digest from its delta's list of hashes and the parent's digest, and that list
/// against `hashes`. Returns what is wrong, or nothing. kDataLoss when a list is damaged.
Result<std::string> check_folded(int delta, int hashes, const v1::TemplateManifest& manifest);
/// Damage is a finding, not a failure to look.
bool is_finding(const Error& error);

}  // namespace fvmm::memory
