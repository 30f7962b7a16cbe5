// Disks: the cut of a template. What a VM writes to goes on in new layers at the instant; what was written is sealed,
// and shared with the template and its clones.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <utility>

#include "base/file.h"
#include "disk/below.h"
#include "disk/merge.h"
#include "vmm/disks.h"

namespace fvmm::vmm {

Status Disks::prepare_one(Disk& disk) {
  const std::filesystem::path& path = disk.file.path();
  if (!disk.layered) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("it is raw: only what is written to a layer can be kept (base={})", path.string()));
  }
  FVMM_TRY(seal_left(disk));
  if (disk.lower.size() >= disk::kMergedAt) {
    disk.merged = FVMM_TRY(disk::merge_layers(FVMM_TRY(disk::layers_directory(path)), disk.lower));
  }
  disk.next.emplace(FVMM_TRY(disk::NextLayer::prepare(path, disk.write_fd, disk.device->top())));
  return {};
}

Status Disks::prepare_cut() {
  const auto all = [this]() -> Status {
    for (Disk& disk : disks_) {
      if (!disk.written) continue;
      FVMM_TRY(prepare_one(disk), "disk " + disk.file.path().string());
    }
    return {};
  };
  Status prepared = all();
  if (prepared) prepared = flush_ahead();  // so that little is left for the pause
  if (!prepared) drop_cut();
  return prepared;
}

// A worker that died between a cut and its seal left a layer that nobody writes to, and that is not sealed.
Status Disks::seal_left(const Disk& disk) {
  using disk::Layer;
  for (const auto& layer : disk.lower) {
    if (layer->sealed() || FVMM_TRY(Layer::open(layer->path(), Layer::Access::kRead))->sealed()) continue;
    FVMM_TRY(FVMM_TRY(Layer::open(layer->path(), Layer::Access::kWrite))->seal());
  }
  return {};
}

Status Disks::cut(const Deadline& deadline) {
  for (Disk& disk : disks_) {
    if (!disk.next) continue;
    FVMM_TRY(disk.device->flush(deadline), "flush " + disk.file.path().string());
    if (disk.merged) FVMM_TRY(go_on_merged(disk), "disk " + disk.file.path().string());
    FVMM_TRY(cut_one(disk), "disk " + disk.file.path().string());
  }
  return {};
}

// The same disk over one layer in place of many.
Status Disks::go_on_merged(Disk& disk) {
  disk::FileLock lock = FVMM_TRY(disk::FileLock::of(disk.merged->fd(), disk.merged->path()));
  FVMM_TRY(lock.take(disk::LockKind::kReaders));
  FVMM_TRY(disk.device->lie_on({disk.merged}));
  disk.replaced = std::exchange(disk.lower, {std::exchange(disk.merged, nullptr)});
  disk.lower_locks.clear();
  disk.lower_locks.push_back(std::move(lock));
  return {};
}

Status Disks::cut_one(Disk& disk) {
  disk::NextLayer::Taken taken = disk.next->take();
  disk.next.reset();
  const int next_fd = taken.layer->fd();
  disk.to_seal = FVMM_TRY(disk.device->put_over(std::move(taken.layer)));
  disk.to_seal->moved(taken.old_path);
  disk.write_fd = next_fd;
  disk.lower.insert(disk.lower.begin(), disk.to_seal);
  disk::FileLock old = std::exchange(disk.file, std::move(taken.lock));
  // From the writer's to the readers' lock in one step; one that stays a writer's keeps clones from starting, and no
  // more than that.
  FVMM_TRY(old.take(disk::LockKind::kReaders));
  disk.lower_locks.insert(disk.lower_locks.begin(), std::move(old));
  return {};
}

Result<std::vector<memory::DiskCut>> Disks::seal_cut() {
  std::vector<memory::DiskCut> cuts;
  for (std::uint32_t i = 0; i < disks_.size(); ++i) {
    Disk& disk = disks_[i];
    if (!disk.written) continue;
    FVMM_TRY(seal_one(disk));
    memory::DiskCut cut{.disk = i, .layers = {}};
    for (const auto& layer : disk.lower) cut.layers.push_back({.id = layer->info().id, .file = layer->path()});
    cuts.push_back(std::move(cut));
  }
  return cuts;
}

Status Disks::seal_one(Disk& disk) {
  if (disk.to_seal) FVMM_TRY(disk.to_seal->seal());
  disk.to_seal.reset();
  // It is durable now that nothing lies on these here. Templates have links of their own.
  for (const auto& layer : std::exchange(disk.replaced, {})) FVMM_TRY(remove_file(layer->path()));
  return {};
}

void Disks::drop_cut() {
  for (Disk& disk : disks_) {
    disk.next.reset();
    if (!disk.merged) continue;
    const Status removed = remove_file(disk.merged->path());
    if (!removed) spdlog::warn("disk {}: {}", disk.file.path().string(), removed.error().message());
    disk.merged.reset();
  }
}

}  // namespace fvmm::vmm
