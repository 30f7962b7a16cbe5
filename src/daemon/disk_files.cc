#include "daemon/disk_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <vector>

#include "base/file.h"
#include "daemon/records.h"
#include "disk/lock.h"
#include "disk/open.h"
#include "vmm/disk_config.h"

namespace fvmm::daemon {
namespace {

struct FileId {
  bool block = false;
  dev_t device = 0;  // of a block device: the device itself, by whatever name
  ino_t inode = 0;
  bool operator==(const FileId&) const = default;
};

/// One use that a disk makes of a file.
struct Use {
  std::string path;
  bool writes = false;
  FileId file;
};

std::optional<FileId> identify(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return std::nullopt;
  if (S_ISBLK(status.st_mode)) return FileId{.block = true, .device = status.st_rdev, .inode = 0};
  return FileId{.block = false, .device = status.st_dev, .inode = status.st_ino};
}

/// Of the files that are there.
std::vector<Use> uses_of(const v1::VmConfig& config) {
  std::vector<Use> uses;
  for (const v1::DiskConfig& disk : config.disks()) {
    if (const auto file = identify(disk.path())) uses.push_back({disk.path(), vmm::is_written(disk), *file});
    if (disk.base().empty()) continue;
    if (const auto file = identify(disk.base())) uses.push_back({disk.base(), false, *file});
  }
  return uses;
}

bool collide(const Use& a, const Use& b) {
  return a.file == b.file && (a.writes || b.writes);
}

bool may_use_disks(const VmView& vm) {
  return vm.worker && vm.state() != v1::VM_MOVED;  // a VM that has left let go of them
}

bool holds_lock(const std::string& process, const std::string& descriptor) {
  std::ifstream file("/proc/" + process + "/fdinfo/" + descriptor);  // of no size that could be asked for
  const std::string info(std::istreambuf_iterator<char>(file), {});
  return info.find("\nlock:") != std::string::npos;
}

/// A process of this host that has a lock on the file; empty when it is not of this host, or not ours to see.
std::string process_with_lock_on(const FileId& file) {
  const auto names_in = [](const std::string& directory) {
    std::vector<std::string> names;
    const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(directory.c_str()), ::closedir);
    while (const dirent* const entry = open ? ::readdir(open.get()) : nullptr) {
      if (entry->d_name[0] >= '0' && entry->d_name[0] <= '9') names.emplace_back(entry->d_name);
    }
    return names;
  };
  for (const std::string& process : names_in("/proc")) {
    const std::string descriptors = "/proc/" + process + "/fd";
    for (const std::string& descriptor : names_in(descriptors)) {
      if (identify(descriptors + "/" + descriptor) == file && holds_lock(process, descriptor)) return process;
    }
  }
  return "";
}

Status check_unlocked(const Use& use) {
  const UniqueFd fd = FVMM_TRY(open_file(use.path, O_RDONLY | O_NONBLOCK), "disk");
  const auto lock = FVMM_TRY(disk::FileLock::of(fd.get(), use.path));
  const auto kind = use.writes ? disk::LockKind::kOneWriter : disk::LockKind::kReaders;
  if (!FVMM_TRY(lock.taken_by_another(kind))) return {};
  const std::string process = process_with_lock_on(use.file);
  return Error(
      Errc::kFailedPrecondition,
      fmt::format("disk {} is in use by {}: end that first{}", use.path,
                  process.empty() ? "another host, or a process that cannot be seen from here" : "process " + process,
                  use.writes ? ", or give this VM a layer of its own (base=FILE)" : ""));
}

}  // namespace

Status check_disk_files(const v1::VmConfig& config) {
  for (const v1::DiskConfig& disk : config.disks()) {
    auto opened = disk::open_disk(vmm::files_of(disk));
    const bool comes_later =
        !opened && !disk.base().empty() && opened.error().code() == Errc::kNotFound && identify(disk.base());
    if (!opened && !comes_later) return std::move(opened.error());
  }
  const std::vector<Use> uses = uses_of(config);
  for (std::size_t i = 0; i < uses.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (!collide(uses[i], uses[j])) continue;
      return Error(Errc::kInvalidArgument,
                   fmt::format("{} and {} are one file, and one of them is written to: each disk needs its own",
                               uses[j].path, uses[i].path));
    }
  }
  return {};
}

Status check_disks_free(const v1::VmConfig& config, std::span<const VmView> vms) {
  for (const Use& use : uses_of(config)) {
    for (const VmView& vm : vms) {
      if (!may_use_disks(vm) || vm.record.config().id() == config.id()) continue;
      for (const Use& theirs : uses_of(vm.record.config())) {
        if (!collide(use, theirs)) continue;
        return Error(Errc::kFailedPrecondition,
                     fmt::format("disk {} is in use by VM {}, which is {}: stop that first (\"vm stop {}\"){}",
                                 use.path, vm.record.config().name(), state_text(vm.state()), vm.record.config().name(),
                                 use.writes ? ", or give this VM a layer of its own (base=FILE)" : ""));
      }
    }
    FVMM_TRY(check_unlocked(use));
  }
  return {};
}

Status make_disk_layers(const v1::VmConfig& config) {
  for (const v1::DiskConfig& disk : config.disks()) FVMM_TRY(disk::make_layer(vmm::files_of(disk)));
  return {};
}

}  // namespace fvmm::daemon
