// The sealed layers below the one that a disk is written to: hard links in PATH.layers, each under its id. So a disk
// has all of itself beside it, whatever becomes of the templates that share its layers.
#pragma once

#include <filesystem>
#include <span>

#include "base/result.h"
#include "disk/stack.h"

namespace fvmm::disk {

/// PATH.layers, beside the file that `path` leads to, or that will be there. kNotFound: nor its directory; kIo.
Result<std::filesystem::path> layers_directory(const std::filesystem::path& path);

/// What lies below the disk's layer at `path`, of which `top` is the header. kDataLoss names a layer that is missing or
/// damaged; kResourceExhausted past kLayersMax.
Result<LowerLayers> open_below(const std::filesystem::path& path, const LayerInfo& top);

/// A new disk at `path`, which does not exist: an empty layer over sealed ones, which get a link beside it. Durable.
/// kAlreadyExists; errors of link_layer().
/// @param lower  files of the layers, the highest first; at least one
Status make_over(const std::filesystem::path& path, std::span<const std::filesystem::path> lower);

/// Another name for a layer's file, which ends with the layer's id. There already: nothing. kFailedPrecondition where
/// the two are not on one filesystem; kIo.
Status link_layer(const std::filesystem::path& file, const std::filesystem::path& link);

}  // namespace fvmm::disk
