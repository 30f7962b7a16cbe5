// Disks: the cut of a template. What a VM writes to goes on in new layers at the instant; what was written is sealed,
// and shared with the template and its clones.
#include <fmt/format.h>

#include <utility>

#include "vmm/disks.h"

namespace fvmm::vmm {

Status Disks::check_cut(const Disk& disk) {
  const std::string path = disk.file.path().string();
  if (!disk.layered) {
    return Error(Errc::kFailedPrecondition,
                 fmt::format("disk {} is raw: only what is written to a layer can be kept (base=FILE)", path));
  }
  if (disk.lower.size() + 2 <= disk::kLayersMax) return {};
  return Error(
      Errc::kResourceExhausted,
      fmt::format("disk {} lies on {} layers, the most there can be: each template adds one, so make the next ones "
                  "of a VM with a new disk",
                  path, disk.lower.size()));
}

Status Disks::prepare_cut() {
  const auto all = [this]() -> Status {
    for (Disk& disk : disks_) {
      if (!disk.written) continue;
      FVMM_TRY(check_cut(disk));
      FVMM_TRY(seal_left(disk), "disk " + disk.file.path().string());
      disk.next.emplace(
          FVMM_TRY(disk::NextLayer::prepare(disk.file.path(), disk.write_fd, disk.device->top()), "disk"));
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
    FVMM_TRY(cut_one(disk), "disk " + disk.file.path().string());
  }
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
    if (disk.to_seal) FVMM_TRY(disk.to_seal->seal());
    disk.to_seal.reset();
    memory::DiskCut cut{.disk = i, .layers = {}};
    for (const auto& layer : disk.lower) cut.layers.push_back({.id = layer->info().id, .file = layer->path()});
    cuts.push_back(std::move(cut));
  }
  return cuts;
}

void Disks::drop_cut() {
  for (Disk& disk : disks_) disk.next.reset();
}

}  // namespace fvmm::vmm
