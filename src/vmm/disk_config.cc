#include "vmm/disk_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace fvmm::vmm {
namespace {

Status check_path(std::string_view what, const std::string& path) {
  if (path.starts_with('/')) return {};
  return Error(Errc::kInvalidArgument, fmt::format("{} \"{}\" must be an absolute path on this host", what, path));
}

Status check_disk(const v1::DiskConfig& disk) {
  FVMM_TRY(check_path("disk", disk.path()));
  if (!disk.base().empty()) FVMM_TRY(check_path("base", disk.base()));
  if (disk.readonly() && !disk.base().empty()) {
    return Error(
        Errc::kInvalidArgument,
        fmt::format("disk {} has a base and is readonly: name the base itself as a readonly disk", disk.path()));
  }
  const auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  if (disk.id().size() > kDiskIdBytesMax || !std::ranges::all_of(disk.id(), good)) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("\"{}\" is no disk id: use at most {} of letters, digits, '.', '_' and '-'",
                             disk.id().substr(0, 2 * kDiskIdBytesMax), kDiskIdBytesMax));
  }
  return {};
}

}  // namespace

bool is_written(const v1::DiskConfig& disk) {
  return !disk.readonly();
}

disk::DiskFiles files_of(const v1::DiskConfig& disk) {
  return {.path = disk.path(), .base = disk.base(), .readonly = disk.readonly()};
}

Status check_disks(const v1::VmConfig& config) {
  std::set<std::string> ids, written, read;
  for (const v1::DiskConfig& disk : config.disks()) {
    FVMM_TRY(check_disk(disk));
    if (!disk.id().empty() && !ids.insert(disk.id()).second) {
      return Error(Errc::kInvalidArgument, fmt::format("two disks with the id {}: give each its own", disk.id()));
    }
    const bool again = is_written(disk) && !written.insert(disk.path()).second;
    if (!is_written(disk)) read.insert(disk.path());
    if (!disk.base().empty()) read.insert(disk.base());
    if (again) return Error(Errc::kInvalidArgument, fmt::format("two disks on one file, {}", disk.path()));
  }
  const auto both = std::ranges::find_if(written, [&](const std::string& path) { return read.contains(path); });
  if (both == written.end()) return {};
  return Error(
      Errc::kInvalidArgument,
      fmt::format("{} is written to by one disk and read by another: make a copy of it for one of them", *both));
}

Status check_disks_travel(const v1::VmConfig& config) {
  for (const v1::DiskConfig& disk : config.disks()) {
    if (disk.shared()) continue;
    return Error(Errc::kFailedPrecondition,
                 fmt::format("disk {} of VM {} is on this host only: a VM is migrated with disks that both hosts reach "
                             "under the same path, and that say so (--disk path=...,shared)",
                             disk.path(), config.name()));
  }
  return {};
}

Status check_disks_cut(const v1::VmConfig& config) {
  for (const v1::DiskConfig& disk : config.disks()) {
    if (!is_written(disk) || !disk.base().empty()) continue;
    return Error(
        Errc::kFailedPrecondition,
        fmt::format("VM {} writes to disk {}, which is raw: a template keeps what a disk holds as a layer, so make "
                    "the VM with one over that file (--disk path=LAYER,base={})",
                    config.name(), disk.path(), disk.path()));
  }
  return {};
}

Status check_disks_readonly(const v1::VmConfig& config) {
  const auto written = std::ranges::find_if(config.disks(), is_written);
  if (written == config.disks().end()) return {};
  return Error(Errc::kFailedPrecondition,
               fmt::format("VM {} writes to disk {}: a replica holds memory only, which would not fit what the disk "
                           "holds later; it is for VMs whose disks are all readonly",
                           config.name(), written->path()));
}

}  // namespace fvmm::vmm
