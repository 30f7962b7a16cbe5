#include "disk/open.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <string_view>

#include "base/check.h"
#include "base/file.h"
#include "disk/below.h"

namespace fvmm::disk {
namespace {

std::string bytes_text(std::uint64_t bytes) {
  return std::to_string(bytes) + " bytes";
}

/// What is there is looked at before it is opened: opening a FIFO would wait for its other end.
Status check_kind(std::string_view what, const std::filesystem::path& path, std::string_view when_missing) {
  struct stat status {};
  const std::string name = std::string(what) + " " + path.string();
  if (::stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT || errno == ENOTDIR)
      return Error(Errc::kNotFound, name + " is missing: " + std::string(when_missing));
    return Error(errno == EACCES ? Errc::kPermissionDenied : Errc::kIo, "stat " + name, errno);
  }
  if (S_ISREG(status.st_mode) || S_ISBLK(status.st_mode)) return {};
  return Error(Errc::kInvalidArgument, name + " is neither a file nor a block device");
}

Result<RawImage> open_image(std::string_view what, const std::filesystem::path& path, bool writable) {
  auto opened = open_raw(path, writable);
  if (!opened && writable &&
      (opened.error().code() == Errc::kPermissionDenied || opened.error().sys_errno() == EROFS)) {
    return std::move(opened.error()).with("a disk that cannot be written to: allow it, or say readonly");
  }
  RawImage image = FVMM_TRY(std::move(opened), what);
  struct stat status {};
  if (::fstat(image.file.get(), &status) != 0) return Error(Errc::kIo, "fstat " + path.string(), errno);
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (S_ISREG(status.st_mode) && bytes != image.bytes) {
    return Error(Errc::kInvalidArgument, std::string(what) + " " + path.string() + " has " + bytes_text(bytes) +
                                             ", no multiple of 512: round its size up (truncate -s %512 FILE)");
  }
  if (image.bytes > kDiskBytesMax) {
    return Error(Errc::kInvalidArgument, std::string(what) + " " + path.string() + " has " + bytes_text(image.bytes) +
                                             "; a disk has at most " + bytes_text(kDiskBytesMax));
  }
  return image;
}

Result<RawImage> open_base(const std::filesystem::path& path) {
  FVMM_TRY(check_kind("base", path, "name the image that lies below the disk"));
  RawImage image = FVMM_TRY(open_image("base", path, false));
  if (!FVMM_TRY(Layer::is_layer(image.file.get()), path.string())) return image;
  return Error(Errc::kInvalidArgument,
               "base " + path.string() + " is itself a layer; a base is a raw image or a block device");
}

Result<Stack> open_raw_disk(const DiskFiles& files) {
  FVMM_TRY(check_kind("disk", files.path,
                      "make an image of the size that you want (truncate -s 8G FILE), or name a base (base=FILE)"));
  RawImage image = FVMM_TRY(open_image("disk", files.path, !files.readonly));
  if (FVMM_TRY(Layer::is_layer(image.file.get()), files.path.string())) {
    return Error(Errc::kInvalidArgument,
                 "disk " + files.path.string() + " is a layer: name what lies below it (base=FILE)");
  }
  return Stack::raw(std::move(image), !files.readonly);
}

}  // namespace

Result<Stack> open_disk(const DiskFiles& files) {
  if (files.base.empty()) return open_raw_disk(files);
  FVMM_CHECK(!files.readonly, "a disk with a base is written to");
  RawImage base = FVMM_TRY(open_base(files.base));
  FVMM_TRY(check_kind("layer", files.path, "it is made when its VM is started"));
  auto opened = Layer::open(files.path, Layer::Access::kWrite);
  if (!opened && opened.error().code() == Errc::kDataLoss) {
    return std::move(opened.error())
        .with("disk " + files.path.string() +
              " cannot lie over a base: name a path that does not exist yet, or leave "
              "out base= if it is a raw image");
  }
  std::unique_ptr<Layer> layer = FVMM_TRY(std::move(opened), "disk");
  const std::uint64_t bytes = layer->info().disk_bytes;
  if (bytes != base.bytes) {
    return Error(Errc::kInvalidArgument, "layer " + files.path.string() + " is of a disk of " + bytes_text(bytes) +
                                             ", base " + files.base.string() + " has " + bytes_text(base.bytes) +
                                             ": it was made over another base, or that has changed its size");
  }
  LowerLayers lower = FVMM_TRY(open_below(files.path, layer->info()));
  return Stack::layered(std::move(layer), std::move(lower), std::move(base));
}

Status make_layer(const DiskFiles& files) {
  if (files.base.empty()) return {};
  struct stat status {};
  if (::stat(files.path.c_str(), &status) == 0 || errno != ENOENT) return {};  // open_disk() says what is wrong with it
  const RawImage base = FVMM_TRY(open_base(files.base));
  FVMM_TRY(Layer::create(files.path, {.id = Id::random(), .parent = Id{}, .disk_bytes = base.bytes}), "new layer");
  return {};
}

}  // namespace fvmm::disk
