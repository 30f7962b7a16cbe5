// Who may use a disk's file: one that writes, or any number that read. Kept by open file descriptions (fcntl(2),
// F_OFD_SETLK), so it ends with the process however that ends, and holds between hosts where the filesystem does so
// (NFS does; a block device's lock is its host's).
#pragma once

#include <filesystem>

#include "base/result.h"
#include "base/unique_fd.h"

namespace fvmm::disk {

enum class LockKind { kReaders, kOneWriter };

/// The lock of one open file. Owner and thread: one; the descriptor it is made from may be used by others meanwhile.
class FileLock {
 public:
  /// `fd`: of the open file that is protected; for kOneWriter open for writing. Its lock lasts until let_go(), or until
  /// the last descriptor of the same open() is closed. kIo.
  static Result<FileLock> of(int fd, std::filesystem::path path);

  /// kFailedPrecondition while somebody else has the file; kIo, also where the filesystem knows no locks.
  Status take(LockKind kind);
  Status let_go();  // kIo: a network filesystem that does not answer; it may be held yet
  /// Whether another holder is in the way of that lock, without taking it. kIo.
  [[nodiscard]] Result<bool> taken_by_another(LockKind kind) const;
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  FileLock(UniqueFd file, std::filesystem::path path) : file_(std::move(file)), path_(std::move(path)) {}
  UniqueFd file_;  // shares the open file with the one that does the work
  std::filesystem::path path_;
};

}  // namespace fvmm::disk
