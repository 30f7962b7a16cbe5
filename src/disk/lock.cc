#include "disk/lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace fvmm::disk {
namespace {

struct flock whole_file(short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;  // l_len 0: to the end, wherever that will be
  return lock;
}

short type_of(LockKind kind) {
  return kind == LockKind::kOneWriter ? F_WRLCK : F_RDLCK;
}

}  // namespace

Result<FileLock> FileLock::of(int fd, std::filesystem::path path) {
  UniqueFd file(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!file) return Error(Errc::kIo, "F_DUPFD_CLOEXEC " + path.string(), errno);
  return FileLock(std::move(file), std::move(path));
}

Status FileLock::take(LockKind kind) {
  struct flock lock = whole_file(type_of(kind));
  if (::fcntl(file_.get(), F_OFD_SETLK, &lock) == 0) return {};
  if (errno != EAGAIN && errno != EACCES) return Error(Errc::kIo, "lock " + path_.string(), errno);
  return Error(Errc::kFailedPrecondition,
               path_.string() + (kind == LockKind::kOneWriter
                                     ? " is in use by another VM or process, here or on another host: stop that one "
                                       "first, or give this VM a layer of its own (base=)"
                                     : " is being written to by another VM or process, here or on another host: stop "
                                       "that one first"));
}

Status FileLock::let_go() {
  struct flock lock = whole_file(F_UNLCK);
  if (::fcntl(file_.get(), F_OFD_SETLK, &lock) != 0) return Error(Errc::kIo, "unlock " + path_.string(), errno);
  return {};
}

Result<bool> FileLock::taken_by_another(LockKind kind) const {
  struct flock lock = whole_file(type_of(kind));
  if (::fcntl(file_.get(), F_OFD_GETLK, &lock) != 0)
    return Error(Errc::kIo, "ask for locks of " + path_.string(), errno);
  return lock.l_type != F_UNLCK;
}

}  // namespace fvmm::disk
