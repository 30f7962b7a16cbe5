// From the files that a user names to a disk: a raw image, or a layer over a base. Errors name the file and what to do.
#pragma once

#include <filesystem>

#include "base/result.h"
#include "disk/stack.h"

namespace fvmm::disk {

struct DiskFiles {
  std::filesystem::path path;  // raw, or with `base` the layer that is written to
  std::filesystem::path base;  // raw and never written; empty: none
  bool readonly = false;       // of `path`; not with a base
};

/// Opens all of it. kNotFound for a file that is missing; kInvalidArgument for one that is no disk, short, not of whole
/// sectors, no layer where one belongs or the other way round, or of another base; kPermissionDenied; errors of Layer.
Result<Stack> open_disk(const DiskFiles& files);

/// Of a disk with a base: makes the layer where `path` does not exist yet, empty, of the base's size, durable. Another
/// disk: nothing. Errors as open_disk() for the base, and of Layer::create().
Status make_layer(const DiskFiles& files);

}  // namespace fvmm::disk
