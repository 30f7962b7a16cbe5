#include "disk/merge.h"

#include <unistd.h>

#include <cerrno>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "base/scope_exit.h"

namespace fvmm::disk {
namespace {

/// The highest layer that says anything of the cluster; null: the base has it.
const Layer* shown_by(const LowerLayers& lower, ClusterIndex cluster) {
  for (const auto& layer : lower) {
    if (layer->map().at(cluster) != ClusterState::kAbsent) return layer.get();
  }
  return nullptr;
}

Status copy_all(const LowerLayers& lower, Layer& out) {
  std::vector<std::byte> bytes(kClusterBytes);
  for (ClusterIndex cluster = 0; cluster < out.map().clusters(); ++cluster) {
    const Layer* const from = shown_by(lower, cluster);
    if (from == nullptr) continue;
    const ClusterState state = from->map().at(cluster);
    if (state == ClusterState::kData) {
      FVMM_TRY(read_all(from->fd(), bytes, from->data_offset(cluster)), from->path().string());
      FVMM_TRY(write_all(out.fd(), bytes, out.data_offset(cluster)), out.path().string());
    }
    out.map().set(cluster, state);
  }
  return out.write_map();
}

}  // namespace

Result<std::shared_ptr<const Layer>> merge_layers(const std::filesystem::path& directory, const LowerLayers& lower) {
  FVMM_CHECK(!lower.empty() && lower.back()->info().parent.none(), "layers are merged down to the base");
  const LayerInfo info{.id = Id::random(), .parent = Id{}, .disk_bytes = lower.front()->info().disk_bytes};
  const std::filesystem::path unfinished = directory / "merging";
  FVMM_TRY(remove_file(unfinished));  // of an attempt that was killed
  std::shared_ptr<Layer> merged = FVMM_TRY(Layer::create(unfinished, info));
  ScopeExit discard([&] { ::unlink(unfinished.c_str()); });
  FVMM_TRY(copy_all(lower, *merged), "merge");
  FVMM_TRY(fsync_fd(merged->fd(), unfinished.string()));
  FVMM_TRY(merged->seal());
  const std::filesystem::path path = directory / info.id.hex();
  if (::rename(unfinished.c_str(), path.c_str()) != 0) return Error(Errc::kIo, "rename " + unfinished.string(), errno);
  discard.dismiss();
  merged->moved(path);
  FVMM_TRY(fsync_path(directory));
  return std::shared_ptr<const Layer>(std::move(merged));
}

}  // namespace fvmm::disk
