#include "daemon/clone_disks.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "base/file.h"
#include "disk/below.h"
#include "disk/layer.h"
#include "vmm/disk_config.h"

namespace fvmm::daemon {
namespace {

namespace fs = std::filesystem;
using disk::Layer;

fs::path place_of(const v1::VmConfig& config, const memory::DiskCut& cut) {
  return config.disks(static_cast<int>(cut.disk)).path();
}

enum class Found { kNothing, kUntouched, kOther };

/// What is where a disk of the template is to be: nothing yet, a layer over the cut that nothing was written to, or
/// something else.
Result<Found> look_at(const fs::path& path, const memory::DiskCut& cut) {
  std::error_code error;
  if (!fs::exists(path, error)) return Found::kNothing;
  const auto layer = FVMM_TRY(Layer::open(path, Layer::Access::kRead), "disk");
  const bool untouched = layer->info().parent == cut.layers.front().id &&
                         layer->map().count(disk::ClusterState::kAbsent) == layer->map().clusters();
  return untouched ? Found::kUntouched : Found::kOther;
}

}  // namespace

Status check_disks_shareable(const v1::VmConfig& config, const fs::path& store) {
  FVMM_TRY(vmm::check_disks_cut(config));
  struct stat of_store {};
  if (::stat(store.c_str(), &of_store) != 0) return Error(Errc::kIo, "stat " + store.string(), errno);
  for (const v1::DiskConfig& disk : config.disks()) {
    struct stat of_disk {};
    if (!vmm::is_written(disk) || ::stat(disk.path().c_str(), &of_disk) != 0) continue;  // the cut says what is wrong
    if (of_disk.st_dev == of_store.st_dev) continue;
    return Error(
        Errc::kFailedPrecondition,
        fmt::format("disk {} is on another filesystem than the templates, which share its layers by hard links: "
                    "put it on that of {}",
                    disk.path(), store.string()));
  }
  return {};
}

bool holds_disks(const memory::TemplateInfo& from) {
  for (int i = 0; i < from.config.disks_size(); ++i) {
    if (!vmm::is_written(from.config.disks(i))) continue;
    const auto held = std::ranges::find(from.disks, static_cast<std::uint32_t>(i), &memory::DiskCut::disk);
    if (held == from.disks.end()) return false;
  }
  return true;
}

std::string numbered(std::string text, unsigned number) {
  if (const auto at = text.find("%n"); at != std::string::npos) text.replace(at, 2, std::to_string(number));
  return text;
}

Status place_disks(v1::VmConfig& config, const memory::TemplateInfo& from, const v1::CloneRequest& request,
                   unsigned number, const fs::path& vm_directory) {
  const auto asked = static_cast<std::size_t>(request.disks_size());
  if (asked != 0 && asked != from.disks.size()) {
    return Error(
        Errc::kInvalidArgument,
        fmt::format("template {} holds {} disks, and {} places were given (--disk path=FILE, once for each, in "
                    "their order)",
                    from.name, from.disks.size(), asked));
  }
  for (std::size_t i = 0; i < from.disks.size(); ++i) {
    v1::DiskConfig& disk = *config.mutable_disks(static_cast<int>(from.disks[i].disk));
    disk.set_shared(false);
    disk.set_path((vm_directory / fmt::format("disk-{}", from.disks[i].disk)).string());
    if (asked == 0) continue;
    const v1::DiskConfig& wanted = request.disks(static_cast<int>(i));
    if (!wanted.base().empty() || wanted.readonly() || !wanted.id().empty()) {
      return Error(
          Errc::kInvalidArgument,
          fmt::format("disk {} of a clone: only path=FILE and shared can be chosen, the rest is the template's",
                      wanted.path()));
    }
    disk.set_path(numbered(wanted.path(), number));
    disk.set_shared(wanted.shared());
  }
  return {};
}

Result<bool> are_untouched(const v1::VmConfig& config, const memory::TemplateInfo& from) {
  for (const memory::DiskCut& cut : from.disks) {
    if (FVMM_TRY(look_at(place_of(config, cut), cut)) == Found::kOther) return false;
  }
  return true;
}

Status make_clone_disks(const v1::VmConfig& config, const memory::TemplateInfo& from) {
  for (const memory::DiskCut& cut : from.disks) {
    const fs::path path = place_of(config, cut);
    const Found found = FVMM_TRY(look_at(path, cut));
    if (found == Found::kOther) {
      return Error(
          Errc::kFailedPrecondition,
          fmt::format("disk {} is there already, and is not what template {} begins with: name a path that does "
                      "not exist yet",
                      path.string(), from.name));
    }
    if (found == Found::kUntouched) continue;
    std::vector<fs::path> files;
    for (const memory::DiskLayerFile& layer : cut.layers) files.push_back(layer.file);
    FVMM_TRY(disk::make_over(path, files), "template " + from.name);
  }
  return {};
}

Status verify_disks(const memory::TemplateInfo& info) {
  for (const memory::DiskCut& cut : info.disks) {
    for (const memory::DiskLayerFile& file : cut.layers) {
      const auto layer = FVMM_TRY(Layer::open(file.file, Layer::Access::kRead), fmt::format("disk {}", cut.disk));
      if (layer->info().id != file.id) {
        return Error(Errc::kDataLoss, fmt::format("disk {}: {} is another layer", cut.disk, file.file.string()));
      }
      FVMM_TRY(layer->verify(), fmt::format("disk {}", cut.disk));
    }
  }
  return {};
}

}  // namespace fvmm::daemon
