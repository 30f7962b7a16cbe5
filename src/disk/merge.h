// Layers that have become many become one.
#pragma once

#include <filesystem>
#include <memory>

#include "base/result.h"
#include "disk/stack.h"

namespace fvmm::disk {

/// Lower layers of one disk, past which they are merged before another comes.
inline constexpr std::size_t kMergedAt = 16;

/// One sealed layer that shows what these show, which lie on nothing but a base. It is `directory`/ID, durable. The
/// others stay as they are: templates share them. Reads and writes all that they show. kResourceExhausted, kIo,
/// kDataLoss.
/// @param lower  the highest first
Result<std::shared_ptr<const Layer>> merge_layers(const std::filesystem::path& directory, const LowerLayers& lower);

}  // namespace fvmm::disk
