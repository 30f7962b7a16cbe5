// The disks of a template: layer files beside its memory, which the store links, counts and removes, and of which it
// knows no more than names and lengths (docs/disk-format.md). Internal to the store's own files.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "memory/template_directory.h"

namespace fvmm::memory {

/// Links the layers into the staging directory and names them in the manifest. A layer of an earlier disk: not again.
/// kFailedPrecondition where they are on another filesystem; kAlreadyExists for a second cut of one disk;
/// kInvalidArgument for a disk that the VM does not have.
Status link_disk(const DiskCut& cut, const StagingDirectory& staging, v1::TemplateManifest& manifest);

/// `layer-ID` of each layer, each once.
std::vector<std::string> disk_files(const v1::TemplateManifest& manifest);

/// The same as the store's users see it. kDataLoss for a file that is missing or not of its length; `stored_bytes`:
/// what they take is added.
Result<std::vector<DiskCut>> inspect_disks(int directory, const std::filesystem::path& path,
                                           const v1::TemplateManifest& manifest, std::uint64_t& stored_bytes);

}  // namespace fvmm::memory
