#include "memory/template_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include "base/file.h"
#include "memory/hash_table.h"
#include "memory/template_disks.h"
#include "memory/template_format.h"
#include "memory/template_store.h"

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

Status StagingDirectory::write_seal(std::string_view manifest_file) const {
  if (manifest_file.size() > kManifestBytesMax) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("manifest of {} bytes, limit {}", manifest_file.size(), kManifestBytesMax));
  }
  FVMM_TRY(write_file(kManifestFile, manifest_file));  // the seal: nothing is written after it
  seal_step("fsync-staging");
  return fsync_fd(fd_.get(), path_.string());
}

Status StagingDirectory::replace(const std::string& name, std::string_view manifest_file) {
  FVMM_TRY(write_seal(manifest_file));
  seal_step("exchange");
  const fs::path place = store_ / name;
  if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, place.c_str(), RENAME_EXCHANGE) != 0) {
    return Error(Errc::kIo, fmt::format("exchange {} and {}", path_.string(), place.string()), errno);
  }
  (void)::flock(fd_.get(), LOCK_UN);  // it is a template now, and no longer ours
  seal_step("fsync-store");
  const Status synced = fsync_path(store_);
  if (!synced) {
    path_.clear();  // a power cut may bring the old one back: its files stay until a sweep
    return Error(synced.error())
        .with(fmt::format("template \"{}\" is replaced but may be the old one after a power cut", name));
  }
  seal_step("remove-old");
  return {};
}

Status StagingDirectory::publish(const std::string& name, std::string_view manifest_file) {
  FVMM_TRY(write_file(kPinFile, {}));
  FVMM_TRY(write_seal(manifest_file));
  seal_step("rename");
  const fs::path place = store_ / name;
  if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, place.c_str(), RENAME_NOREPLACE) != 0) {
    const int error = errno;
    if (error == EEXIST) return Error(Errc::kAlreadyExists, fmt::format("a template \"{}\" exists already", name));
    return Error(Errc::kIo, fmt::format("rename {} to {}", path_.string(), place.string()), error);
  }
  path_.clear();
  (void)::flock(fd_.get(), LOCK_UN);  // the lock of a writer; a published template's directory is locked by its fold
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
  return read_whole(file.get(), name, bytes_max);
}

Result<std::string> read_whole(int file, const char* name, std::uint64_t bytes_max) {
  struct stat info {};
  if (::fstat(file, &info) != 0) return Error(Errc::kIo, fmt::format("stat of {}", name), errno);
  const auto size = static_cast<std::uint64_t>(info.st_size);
  if (size > bytes_max) return Error(Errc::kDataLoss, fmt::format("{} has {} bytes, limit {}", name, size, bytes_max));
  std::string content(size, '\0');
  FVMM_TRY(read_all(file, std::as_writable_bytes(std::span(content)), 0), name);
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
  FVMM_TRY(check_length(directory, payload_file(manifest), payload_bytes(manifest), &info.stored_bytes));
  FVMM_TRY(check_length(directory, kHashesFile, manifest.hashes().bytes(), &info.stored_bytes));
  FVMM_TRY(check_length(directory, kMachineFile, manifest.machine().bytes(), &info.stored_bytes));
  if (manifest.has_delta()) {
    FVMM_TRY(check_length(directory, kDeltaFile, manifest.delta().bytes(), &info.stored_bytes));
    info.delta_pages = hash_entries_in(manifest.delta().bytes());
  }
  info.id = FVMM_TRY(Id::from_bytes(manifest.id()));
  info.digest = FVMM_TRY(Id::from_bytes(manifest.digest()));
  info.name = path.filename().string();
  info.generation = manifest.generation();
  info.memory_bytes = manifest.memory_bytes();
  info.pages = manifest.pages();
  info.created = manifest.created();
  info.config = manifest.config();
  info.directory = path;
  info.disks = FVMM_TRY(inspect_disks(directory, path, manifest, info.stored_bytes));
  info.kind = manifest.kind();
  info.parent_digest = FVMM_TRY(Id::from_bytes(manifest.parent_digest()));
  if (info.parent_digest.none()) return seen;
  info.parent_id = FVMM_TRY(Id::from_bytes(manifest.parent_id()));
  info.parent_name = manifest.parent_name();
  if (!info.is_delta()) return seen;
  if (!is_squashed(manifest)) info.delta_pages = manifest.pages();
  const v1::TemplateLink below = lies_on(manifest);
  info.below_digest = FVMM_TRY(Id::from_bytes(below.digest()));
  info.below_id = FVMM_TRY(Id::from_bytes(below.id()));
  info.below_name = below.name();
  info.runs = manifest.runs();
  return seen;
}

Result<Inspected> inspect_path(const fs::path& path) {
  const UniqueFd directory = FVMM_TRY(open_file(path, O_RDONLY | O_DIRECTORY));
  return inspect(directory.get(), path);
}

Result<std::vector<std::string>> names_in(const fs::path& store,
                                          const std::function<bool(const std::string&)>& wanted) {
  std::error_code error;
  std::vector<std::string> names;
  fs::directory_iterator it(store, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    std::string name = it->path().filename().string();
    if (wanted(name)) names.push_back(std::move(name));
  }
  if (error) return Error(Errc::kIo, fmt::format("read directory {}", store.string()), error.value());
  std::sort(names.begin(), names.end());
  return names;
}

Result<std::vector<std::string>> stored_names(const fs::path& store) {
  return names_in(store, [](const std::string& name) { return check_stored_name(name).ok(); });
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
