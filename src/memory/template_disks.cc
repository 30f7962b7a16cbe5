#include "memory/template_disks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/units.h"
#include "memory/template_format.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kStatBlockBytes = 512;  // of st_blocks, whatever the filesystem's are

std::string file_name(const Id& id) {
  return "layer-" + id.hex();
}

Status link_one(const std::filesystem::path& from, const StagingDirectory& staging, const std::string& to) {
  seal_step("link-layer");
  if (::linkat(AT_FDCWD, from.c_str(), staging.fd(), to.c_str(), 0) == 0 || errno == EEXIST) return {};
  const int error = errno;
  if (error == EXDEV) {
    return Error(
        Errc::kFailedPrecondition,
        fmt::format("disk layer {} is on another filesystem than the templates, with which it is shared by a hard "
                    "link: put the disk on that of fvmmd's state directory",
                    from.string()),
        error);
  }
  const bool full = error == ENOSPC || error == EDQUOT || error == EMLINK;
  return Error(full ? Errc::kResourceExhausted : Errc::kIo, fmt::format("link {}", from.string()), error);
}

Result<struct stat> status_of(int directory, const std::string& file) {
  struct stat status {};
  if (::fstatat(directory, file.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) return status;
  return Error(errno == ENOENT ? Errc::kDataLoss : Errc::kIo, file, errno);
}

}  // namespace

Status link_disk(const DiskCut& cut, const StagingDirectory& staging, v1::TemplateManifest& manifest) {
  if (std::ranges::any_of(manifest.disks(), [&](const auto& disk) { return disk.disk() >= cut.disk; })) {
    return Error(Errc::kAlreadyExists, fmt::format("disk {} comes after one behind it, or twice", cut.disk));
  }
  if (cut.disk >= static_cast<std::uint32_t>(manifest.config().disks_size()) || cut.layers.empty()) {
    return Error(Errc::kInvalidArgument, fmt::format("disk {} is none of its VM, or has no layer", cut.disk));
  }
  v1::DiskOfTemplate& disk = *manifest.add_disks();
  disk.set_disk(cut.disk);
  for (const DiskLayerFile& layer : cut.layers) {
    const std::string file = file_name(layer.id);
    FVMM_TRY(link_one(layer.file, staging, file));
    v1::LayerOfDisk& out = *disk.add_layers();
    out.set_id(layer.id.raw());
    out.set_bytes(static_cast<std::uint64_t>(FVMM_TRY(status_of(staging.fd(), file)).st_size));
  }
  return {};
}

std::vector<std::string> disk_files(const v1::TemplateManifest& manifest) {
  std::vector<std::string> files;
  for (const v1::DiskOfTemplate& disk : manifest.disks()) {
    for (const v1::LayerOfDisk& layer : disk.layers()) {
      std::string file = file_name(Id::from_bytes(layer.id()).value());
      if (std::ranges::find(files, file) == files.end()) files.push_back(std::move(file));
    }
  }
  return files;
}

Result<std::vector<DiskCut>> inspect_disks(int directory, const std::filesystem::path& path,
                                           const v1::TemplateManifest& manifest, std::uint64_t& stored_bytes) {
  std::vector<DiskCut> cuts;
  for (const v1::DiskOfTemplate& disk : manifest.disks()) {
    DiskCut& cut = cuts.emplace_back(DiskCut{.disk = disk.disk(), .layers = {}});
    for (const v1::LayerOfDisk& layer : disk.layers()) {
      const Id id = FVMM_TRY(Id::from_bytes(layer.id()), "id of a layer");
      const struct stat status = FVMM_TRY(status_of(directory, file_name(id)));
      if (static_cast<std::uint64_t>(status.st_size) != layer.bytes()) {
        return Error(Errc::kDataLoss, fmt::format("{} has {} bytes, the manifest says {}", file_name(id),
                                                  status.st_size, layer.bytes()));
      }
      stored_bytes += static_cast<std::uint64_t>(status.st_blocks) * kStatBlockBytes;
      cut.layers.push_back({.id = id, .file = path / file_name(id)});
    }
  }
  return cuts;
}

}  // namespace fvmm::memory
