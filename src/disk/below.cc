#include "disk/below.h"

#include <unistd.h>

#include <cerrno>
#include <optional>

#include "base/check.h"
#include "base/file.h"

namespace fvmm::disk {

namespace fs = std::filesystem;

Result<fs::path> layers_directory(const fs::path& path) {
  std::error_code error;
  fs::path file = fs::canonical(path, error);
  if (error == std::errc::no_such_file_or_directory) {
    file = fs::canonical(path.parent_path(), error);
    file /= path.filename();
  }
  if (error) {
    const bool missing = error == std::errc::no_such_file_or_directory;
    return Error(missing ? Errc::kNotFound : Errc::kIo, "disk " + path.string(), error.value());
  }
  file += ".layers";
  return file;
}

Status link_layer(const fs::path& file, const fs::path& link) {
  if (::link(file.c_str(), link.c_str()) == 0 || errno == EEXIST) return {};
  const int error = errno;
  if (error == EXDEV) {
    return Error(
        Errc::kFailedPrecondition,
        file.string() + " and " + link.string() +
            " are on two filesystems, and a disk shares its layers with its templates by hard links: put it on "
            "the filesystem of fvmmd's state directory",
        error);
  }
  const bool full = error == ENOSPC || error == EDQUOT;
  return Error(full ? Errc::kResourceExhausted : Errc::kIo, "link " + file.string() + " as " + link.string(), error);
}

Result<LowerLayers> open_below(const fs::path& path, const LayerInfo& top) {
  LowerLayers lower;
  if (top.parent.none()) return lower;
  const fs::path directory = FVMM_TRY(layers_directory(path));
  for (Id parent = top.parent; !parent.none(); parent = lower.back()->info().parent) {
    if (lower.size() + 1 >= kLayersMax) {
      return Error(Errc::kResourceExhausted,
                   "disk " + path.string() + " lies on more than " + std::to_string(kLayersMax - 1) + " layers");
    }
    auto layer = Layer::open(directory / parent.hex(), Layer::Access::kRead);
    if (!layer && layer.error().code() == Errc::kNotFound) {
      return Error(Errc::kDataLoss, "disk " + path.string() + " lies on layer " + parent.hex() + ", which is not in " +
                                        directory.string() + ": copy that directory with the disk");
    }
    lower.push_back(FVMM_TRY(std::move(layer), "disk " + path.string()));
  }
  return lower;
}

// The layer itself comes last: killed before, there is no disk, and what is there serves the next attempt.
Status make_over(const fs::path& path, std::span<const fs::path> lower) {
  FVMM_CHECK(!lower.empty(), "an empty layer over nothing is make_layer()");
  const fs::path directory = FVMM_TRY(layers_directory(path));
  FVMM_TRY(make_directories(directory));
  std::optional<LayerInfo> highest;
  for (const fs::path& file : lower) {
    const auto layer = FVMM_TRY(Layer::open(file, Layer::Access::kRead));
    if (!highest) highest = layer->info();
    FVMM_TRY(link_layer(file, directory / layer->info().id.hex()));
  }
  FVMM_TRY(fsync_path(directory));
  FVMM_TRY(Layer::create(path, {.id = Id::random(), .parent = highest->id, .disk_bytes = highest->disk_bytes}));
  return {};
}

}  // namespace fvmm::disk
