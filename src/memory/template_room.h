// Free space of the store, asked before anything is written. Internal to the store's own files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "base/result.h"

namespace fvmm::memory {

/// kResourceExhausted when the filesystem lacks room for that many bytes of pages, their hashes and a machine state.
Status check_room(const std::filesystem::path& store, std::string_view name, std::uint64_t page_bytes);

}  // namespace fvmm::memory
