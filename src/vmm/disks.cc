#include "vmm/disks.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>

#include "vmm/disk_config.h"

namespace fvmm::vmm {

Result<std::unique_ptr<devices::VirtioDevice>> Disks::attach(const v1::DiskConfig& config, devices::OutputGate& gate) {
  using disk::FileLock;
  using disk::LockKind;
  auto opened = disk::open_disk(files_of(config));
  // At a destination kNotFound would mean a template, which the source then sends.
  if (!opened && opened.error().code() == Errc::kNotFound) {
    return Error(Errc::kFailedPrecondition, opened.error().message());
  }
  disk::Stack stack = FVMM_TRY(std::move(opened));
  Disk disk{.device = nullptr,
            .write_fd = stack.write_fd(),
            .written = stack.writable(),
            .layered = !stack.is_raw(),
            .file = FVMM_TRY(FileLock::of(stack.write_fd(), config.path())),
            .base = std::nullopt,
            .lower_locks = {},
            .lower = stack.lower()};
  if (!disk.written) FVMM_TRY(disk.file.take(LockKind::kReaders), "disk");
  if (!config.base().empty()) {
    disk.base = FVMM_TRY(FileLock::of(stack.base_fd(), config.base()));
    FVMM_TRY(disk.base->take(LockKind::kReaders), "base");
  }
  for (const auto& layer : disk.lower) {
    disk.lower_locks.push_back(FVMM_TRY(FileLock::of(layer->fd(), layer->path())));
    FVMM_TRY(disk.lower_locks.back().take(LockKind::kReaders), "layer");
  }
  auto device = std::make_unique<devices::VirtioBlk>(
      devices::VirtioBlkSetup{.stack = std::move(stack),
                              .io = FVMM_TRY(disk::make_ring_io(), "disk " + config.path()),
                              .gate = gate,
                              .id = config.id().empty() ? fmt::format("disk{}", disks_.size()) : config.id()});
  disk.device = device.get();
  held_ = false;
  disks_.push_back(std::move(disk));
  return std::unique_ptr<devices::VirtioDevice>(std::move(device));
}

Status Disks::take() {
  if (held_) return {};
  const auto all = [this]() -> Status {
    for (Disk& disk : disks_) {
      if (!disk.written) continue;
      FVMM_TRY(disk.file.take(disk::LockKind::kOneWriter), "disk");
      FVMM_TRY(disk.device->reread(), "disk");
    }
    return {};
  };
  Status taken = all();
  held_ = true;
  if (!taken) let_go();
  return taken;
}

Status Disks::flush(const Deadline& deadline) {
  for (const Disk& disk : disks_) FVMM_TRY(disk.device->flush(deadline), "flush " + disk.file.path().string());
  return {};
}

Status Disks::flush_ahead() {
  for (const Disk& disk : disks_) {
    if (disk.written && ::fdatasync(disk.write_fd) != 0) {
      return Error(Errc::kIo, "flush " + disk.file.path().string(), errno);
    }
  }
  return {};
}

void Disks::let_go() {
  for (Disk& disk : disks_) {
    if (!disk.written || !held_) continue;
    const Status free = disk.file.let_go();  // one that stays locked makes the peer's start fail, and it comes back
    if (!free) spdlog::error("disk: {}", free.error().message());
  }
  held_ = false;
}

}  // namespace fvmm::vmm
