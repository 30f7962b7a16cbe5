#include "disk/next_layer.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/check.h"
#include "base/file.h"
#include "base/scope_exit.h"
#include "disk/below.h"

namespace fvmm::disk {

namespace fs = std::filesystem;

namespace {

Status rename_file(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) == 0) return {};
  return Error(Errc::kIo, "rename " + from.string() + " to " + to.string(), errno);
}

/// Somebody may have moved or replaced the file since it was opened.
Status check_same_file(const fs::path& path, int fd) {
  struct stat named {};
  struct stat open {};
  if (::fstat(fd, &open) != 0) return Error(Errc::kIo, "fstat " + path.string(), errno);
  if (::stat(path.c_str(), &named) == 0 && named.st_dev == open.st_dev && named.st_ino == open.st_ino) return {};
  return Error(Errc::kFailedPrecondition,
               path.string() + " is not the file that the VM writes to any more: it was moved or replaced");
}

}  // namespace

Result<NextLayer> NextLayer::prepare(const fs::path& path, int top_fd, const LayerInfo& top) {
  FVMM_TRY(check_same_file(path, top_fd));
  const fs::path directory = FVMM_TRY(layers_directory(path));
  fs::path file =
      directory;  // the same without symbolic links: a rename replaces what it names, not what that leads to
  file.replace_extension();
  const fs::path old_path = directory / top.id.hex();
  const fs::path next_path = file.string() + ".next";
  FVMM_TRY(make_directories(directory));
  FVMM_TRY(remove_file(next_path));  // of an earlier attempt that was killed
  auto next = FVMM_TRY(Layer::create(next_path, {.id = Id::random(), .parent = top.id, .disk_bytes = top.disk_bytes}));
  ScopeExit discard([&] { ::unlink(next_path.c_str()); });
  FileLock lock = FVMM_TRY(FileLock::of(next->fd(), path));
  FVMM_TRY(lock.take(LockKind::kOneWriter));
  FVMM_TRY(link_layer(file, old_path));
  FVMM_TRY(fsync_path(directory));
  FVMM_TRY(rename_file(next_path, file));
  discard.dismiss();
  next->moved(file);
  NextLayer prepared(file, old_path, std::move(next), std::move(lock));
  FVMM_TRY(fsync_path(file.parent_path()));  // an error takes it back
  return prepared;
}

NextLayer::Taken NextLayer::take() {
  FVMM_CHECK(layer_ != nullptr, "a next layer is taken once");
  return {.layer = std::move(layer_), .lock = std::move(*lock_), .old_path = old_path_};
}

NextLayer::~NextLayer() {
  if (!layer_) return;
  Status back = rename_file(old_path_, path_);
  if (back) back = fsync_path(path_.parent_path());
  // An empty layer more: the disk is whole all the same.
  if (!back) spdlog::warn("disk {}: {}", path_.string(), back.error().message());
  ::rmdir(old_path_.parent_path().c_str());  // if nothing else is below
}

}  // namespace fvmm::disk
