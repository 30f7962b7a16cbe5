#include "disk/layer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/check.h"
#include "base/file.h"
#include "base/scope_exit.h"
#include "disk/layer_header.h"

namespace fvmm::disk {

namespace {

std::uint64_t data_begin(std::uint64_t disk_bytes) {
  const std::uint64_t end = kLayerHeaderBytes + ClusterMap::disk_bytes(clusters_of(disk_bytes));
  return clusters_of(end) * kClusterBytes;
}

std::uint64_t file_bytes(std::uint64_t disk_bytes) {
  return data_begin(disk_bytes) + clusters_of(disk_bytes) * kClusterBytes;
}

}  // namespace

Layer::Layer(std::filesystem::path path, UniqueFd file, const LayerInfo& info)
    : path_(std::move(path)), file_(std::move(file)), info_(info), map_(clusters_of(info.disk_bytes)) {}

std::uint64_t Layer::data_offset(ClusterIndex cluster) const {
  return data_begin(info_.disk_bytes) + cluster * kClusterBytes;
}

std::uint64_t Layer::map_offset(std::uint64_t block) {
  return kLayerHeaderBytes + block * kMapBlockBytes;
}

Result<std::unique_ptr<Layer>> Layer::create(const std::filesystem::path& path, const LayerInfo& info) {
  FVMM_TRY(check_disk_bytes(info.disk_bytes), path.string());
  UniqueFd file = FVMM_TRY(open_file(path, O_RDWR | O_CREAT | O_EXCL));
  ScopeExit discard([&path] { ::unlink(path.c_str()); });
  if (::ftruncate(file.get(), static_cast<off_t>(file_bytes(info.disk_bytes))) != 0) {
    return Error(errno == ENOSPC || errno == EFBIG ? Errc::kResourceExhausted : Errc::kIo, "ftruncate " + path.string(),
                 errno);
  }
  FVMM_TRY(write_layer_header(file.get(), info), path.string());
  FVMM_TRY(fsync_fd(file.get(), path.string()));
  FVMM_TRY(fsync_path(path.parent_path()));
  discard.dismiss();
  return std::unique_ptr<Layer>(new Layer(path, std::move(file), info));
}

Result<std::unique_ptr<Layer>> Layer::open(const std::filesystem::path& path, Access access) {
  UniqueFd file = FVMM_TRY(open_file(path, access == Access::kWrite ? O_RDWR : O_RDONLY));
  const auto [info, sealed] = FVMM_TRY(read_layer_header(file.get()), path.string());
  if (sealed && access == Access::kWrite) {
    return Error(Errc::kFailedPrecondition,
                 path.string() + " is sealed: it belongs to a template, and others lie on it");
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return Error(Errc::kIo, "fstat " + path.string(), errno);
  if (static_cast<std::uint64_t>(status.st_size) != file_bytes(info.disk_bytes)) {
    return Error(Errc::kDataLoss, path.string() + ": " + std::to_string(status.st_size) +
                                      " bytes where a layer of this disk has " +
                                      std::to_string(file_bytes(info.disk_bytes)));
  }
  std::unique_ptr<Layer> layer(new Layer(path, std::move(file), info));
  layer->sealed_ = sealed;
  FVMM_TRY(layer->read_map(), path.string());
  return layer;
}

Status Layer::read_map() {
  std::vector<std::byte> map(ClusterMap::disk_bytes(clusters_of(info_.disk_bytes)));
  FVMM_TRY(read_all(fd(), map, map_offset(0)));
  return map_.load(map);
}

Status Layer::write_map() {
  for (const std::uint64_t block : map_.take_changed()) {
    FVMM_TRY(write_all(fd(), map_.block(block), map_offset(block)), path_.string());
  }
  return {};
}

Status Layer::lie_on(const Id& parent) {
  FVMM_CHECK(!sealed_, "what a sealed layer lies on never changes");
  LayerInfo info = info_;
  info.parent = parent;
  FVMM_TRY(write_layer_header(fd(), info), path_.string());
  info_ = info;
  return {};
}

Status Layer::reread() {
  const auto [now, sealed] = FVMM_TRY(read_layer_header(fd()), path_.string());
  if (sealed || now.id != info_.id || now.parent != info_.parent || now.disk_bytes != info_.disk_bytes) {
    return Error(Errc::kFailedPrecondition, path_.string() + " has become another layer since it was opened");
  }
  FVMM_TRY(read_map(), path_.string());
  return {};
}

}  // namespace fvmm::disk
