#include "memory/template_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "base/file.h"
#include "memory/template_format.h"

namespace fvmm::memory {
namespace {

namespace fs = std::filesystem;

constexpr int kCreateAttemptsMax = 16;

std::function<void(std::string_view)>& hook() {
  static std::function<void(std::string_view)> instance;
  return instance;
}

Status lock_new_directory(int fd, const fs::path& path) {
  // Between mkdir and here a sweep may have taken it for a leftover: then the lock is refused, or the path is gone.
  if (::flock(fd, LOCK_EX | LOCK_NB) == 0 && is_same_directory(fd, path)) return {};
  return Error(Errc::kAborted, fmt::format("{} was swept while it was created", path.string()));
}

Result<std::uint64_t> file_length(int directory, const char* name, std::uint64_t* stored_bytes) {
  struct stat info {};
  if (::fstatat(directory, name, &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return Error(errno == ENOENT ? Errc::kDataLoss : Errc::kIo, fmt::format("stat of {}", name), errno);
  }
  if (!S_ISREG(info.st_mode)) return Error(Errc::kDataLoss, fmt::format("{} is not a regular file", name));
  *stored_bytes += static_cast<std::uint64_t>(info.st_blocks) * 512;  // stat(2): st_blocks counts 512 bytes
  return static_cast<std::uint64_t>(info.st_size);
}

Status check_length(int directory, const char* name, std::uint64_t expected, std::uint64_t* stored_bytes) {
  const std::uint64_t bytes = FVMM_TRY(file_length(directory, name, stored_bytes));
  if (bytes == expected) return {};
  return Error(Errc::kDataLoss, fmt::format("{} has {} bytes, its manifest says {}", name, bytes, expected));
}

}  // namespace

void seal_step(std::string_view step) {
  if (hook()) hook()(step);
}

void set_seal_step_hook(std::function<void(std::string_view step)> new_hook) {
  hook() = std::move(new_hook);
}

Result<StagingDirectory> StagingDirectory::create(const fs::path& store) {
  Status status;
  for (int attempt = 0; attempt < kCreateAttemptsMax; ++attempt) {
    const fs::path path = store / (std::string(kStagingPrefix) + Id::random().hex());
    if (::mkdir(path.c_str(), 0700) != 0) {
      const int error = errno;
      const bool full = error == ENOSPC || error == EDQUOT;
      return Error(full ? Errc::kResourceExhausted : Errc::kIo, fmt::format("mkdir {}", path.string()), error);
    }
    Result<UniqueFd> fd = open_file(path, O_RDONLY | O_DIRECTORY);
    if (!fd && fd.error().code() != Errc::kNotFound) return std::move(fd.error());
    if (!fd) continue;  // swept already
    status = lock_new_directory(fd->get(), path);
    if (status) return StagingDirectory(store, path, std::move(*fd));
  }
  return Error(Errc::kAborted, fmt::format("{}: no staging directory survives being swept", store.string()));
}

Result<UniqueFd> StagingDirectory::create_file(const char* name) const {
  return open_in(fd_.get(), name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
}

Status StagingDirectory::write_file(const char* name, std::string_view content) const {
  seal_step(fmt::format("write-{}", name));
  const UniqueFd file = FVMM_TRY(create_file(name));
  FVMM_TRY(write_all(file.get(), as_bytes(content), 0), name);
  seal_step(fmt::format("fsync-{}", name));
  return fsync_fd(file.get(), name);
}

Status StagingDirectory::publish(const std::string& name, std::string_view manifest_file) {
  FVMM_TRY(write_file(kPinFile, {}));
  FVMM_TRY(write_file(kManifestFile, manifest_file));  // the seal: nothing is written after it
  seal_step("fsync-staging");
  FVMM_TRY(fsync_fd(fd_.get(), path_.string()));
  seal_step("rename");
  const fs::path place = store_ / name;
  if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, place.c_str(), RENAME_NOREPLACE) != 0) {
    const int error = errno;
    if (error == EEXIST) return Error(Errc::kAlreadyExists, fmt::format("a template \"{}\" exists already", name));
    return Error(Errc::kIo, fmt::format("rename {} to {}", path_.string(), place.string()), error);
  }
  path_.clear();
  seal_step("fsync-store");
  FVMM_TRY(fsync_path(store_), fmt::format("template \"{}\" exists but may not survive a power cut", name));
  return {};
}

void StagingDirectory::discard() {
  if (path_.empty()) return;
  remove_tree(path_);  // still locked: no sweep interferes
  path_.clear();
  fd_.reset();
}

Result<UniqueFd> open_in(int directory, const char* name, int flags, unsigned mode) {
  UniqueFd fd(::openat(directory, name, flags | O_CLOEXEC, mode));
  if (fd) return fd;
  const int error = errno;
  const bool full = error == ENOSPC || error == EDQUOT;
  const Errc code = error == ENOENT ? Errc::kNotFound : full ? Errc::kResourceExhausted : Errc::kIo;
  return Error(code, fmt::format("open {}", name), error);
}

Result<std::string> read_in(int directory, const char* name, std::uint64_t bytes_max) {
  const UniqueFd file = FVMM_TRY(open_in(directory, name, O_RDONLY));
  struct stat info {};
  if (::fstat(file.get(), &info) != 0) return Error(Errc::kIo, fmt::format("stat of {}", name), errno);
  const auto size = static_cast<std::uint64_t>(info.st_size);
  if (size > bytes_max) return Error(Errc::kDataLoss, fmt::format("{} has {} bytes, limit {}", name, size, bytes_max));
  std::string content(size, '\0');
  FVMM_TRY(read_all(file.get(), std::as_writable_bytes(std::span(content)), 0), name);
  return content;
}

bool is_same_directory(int directory, const fs::path& path) {
  struct stat open {};
  struct stat named {};
  return ::fstat(directory, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
         open.st_ino == named.st_ino;
}

void remove_tree(const fs::path& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

Result<Inspected> inspect(int directory, const fs::path& path) {
  Inspected seen;
  seen.manifest = FVMM_TRY(decode_manifest(FVMM_TRY(read_in(directory, kManifestFile, kManifestBytesMax))));
  TemplateInfo& info = seen.info;
  const v1::TemplateManifest& manifest = seen.manifest;
  FVMM_TRY(file_length(directory, kManifestFile, &info.stored_bytes));
  FVMM_TRY(check_length(directory, kMemoryFile, manifest.memory_bytes(), &info.stored_bytes));
  FVMM_TRY(check_length(directory, kHashesFile, manifest.hashes().bytes(), &info.stored_bytes));
  FVMM_TRY(check_length(directory, kMachineFile, manifest.machine().bytes(), &info.stored_bytes));
  info.id = FVMM_TRY(Id::from_bytes(manifest.id()));
  info.digest = FVMM_TRY(Id::from_bytes(manifest.digest()));
  info.name = path.filename().string();
  info.generation = manifest.generation();
  info.memory_bytes = manifest.memory_bytes();
  info.pages = manifest.pages();
  info.created = manifest.created();
  info.config = manifest.config();
  info.directory = path;
  return seen;
}

std::uint32_t count_pins(int directory) {
  struct stat pin {};
  if (::fstatat(directory, kPinFile, &pin, AT_SYMLINK_NOFOLLOW) != 0) return 0;
  // proc_locks(5): "1: FLOCK  ADVISORY  READ 4711 fe:00:1234567 0 EOF". Asking is better than trying an exclusive lock,
  // which would make a clone that opens the template at that moment fail.
  const std::string wanted = fmt::format(" {:02x}:{:02x}:{} ", major(pin.st_dev), minor(pin.st_dev), pin.st_ino);
  std::ifstream locks("/proc/locks");
  std::uint32_t count = 0;
  for (std::string line; std::getline(locks, line);) {
    const bool shared_flock = line.find(" FLOCK ") != std::string::npos && line.find(" READ ") != std::string::npos;
    if (shared_flock && line.find(wanted) != std::string::npos) ++count;
  }
  return count;
}

}  // namespace fvmm::memory
