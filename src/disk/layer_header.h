// The first block of a layer file: what it is, and whether it is sealed. For the layer's own files.
#pragma once

#include <cstdint>
#include <optional>

#include "base/id.h"
#include "base/result.h"
#include "disk/layer.h"

namespace fvmm::disk {

inline constexpr std::uint64_t kLayerHeaderBytes = 4096;

struct LayerHeader {
  LayerInfo info;
  std::optional<Id> sealed;  // XXH3-128 of its content
};

/// kDataLoss for what is no header of a layer; kUnimplemented for a version of the future; kIo.
Result<LayerHeader> read_layer_header(int fd);
/// Not yet durable. kIo, kResourceExhausted.
Status write_layer_header(int fd, const LayerInfo& info, const std::optional<Id>& sealed = std::nullopt);
/// kInvalidArgument for a size that no disk has.
Status check_disk_bytes(std::uint64_t disk_bytes);

}  // namespace fvmm::disk
