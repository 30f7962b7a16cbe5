#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

namespace fvmm {
namespace {

Errc errc_of(int error) {
  if (error == ENOSPC || error == EDQUOT) return Errc::kResourceExhausted;
  if (error == ENOENT) return Errc::kNotFound;
  if (error == EEXIST) return Errc::kAlreadyExists;
  if (error == EACCES || error == EPERM) return Errc::kPermissionDenied;
  return Errc::kIo;
}

}  // namespace

Result<UniqueFd> open_file(const std::filesystem::path& path, int flags, unsigned mode) {
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd) {
    const int error = errno;
    return Error(errc_of(error), fmt::format("open {}", path.string()), error);
  }
  return fd;
}

Result<std::string> read_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const UniqueFd fd = FVMM_TRY(open_file(path, O_RDONLY));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return Error(Errc::kIo, fmt::format("stat {}", path.string()), errno);
  const auto size = static_cast<std::uint64_t>(info.st_size);
  if (size > max_bytes) {
    return Error(Errc::kResourceExhausted, fmt::format("{} has {} bytes, limit {}", path.string(), size, max_bytes));
  }
  std::string content(size, '\0');
  FVMM_TRY(read_all(fd.get(), std::as_writable_bytes(std::span(content)), 0), "read " + path.string());
  return content;
}

Status write_all(int fd, std::span<const std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int error = errno;
      return Error(errc_of(error), "write", error);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

Status read_all(int fd, std::span<std::byte> bytes, std::uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t n = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Error(Errc::kIo, "read", errno);
    if (n == 0) return Error(Errc::kDataLoss, fmt::format("file ends at {}, {} bytes short", offset, bytes.size()));
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

Status replace_file(const std::filesystem::path& path, std::string_view content) {
  static std::atomic<unsigned> counter{0};
  std::filesystem::path temporary = path;
  temporary += fmt::format(".tmp-{}-{}", ::getpid(), counter.fetch_add(1));
  const auto write = [&]() -> Status {
    const UniqueFd fd = FVMM_TRY(open_file(temporary, O_WRONLY | O_CREAT | O_EXCL));
    FVMM_TRY(write_all(fd.get(), as_bytes(content), 0), temporary.string());
    FVMM_TRY(fsync_fd(fd.get(), temporary.string()));
    if (::rename(temporary.c_str(), path.c_str()) != 0) {
      return Error(Errc::kIo, fmt::format("rename {}", path.string()), errno);
    }
    return fsync_path(path.parent_path());
  };
  Status status = write();
  if (!status) ::unlink(temporary.c_str());
  return status;
}

Status remove_file(const std::filesystem::path& path) {
  if (::unlink(path.c_str()) != 0) {
    if (errno == ENOENT) return {};
    return Error(Errc::kIo, fmt::format("unlink {}", path.string()), errno);
  }
  return fsync_path(path.parent_path());
}

Status fsync_path(const std::filesystem::path& path) {
  const UniqueFd fd = FVMM_TRY(open_file(path, O_RDONLY));
  return fsync_fd(fd.get(), path.string());
}

Status fsync_fd(int fd, std::string_view name) {
  if (::fsync(fd) != 0) {
    const int error = errno;
    return Error(errc_of(error), fmt::format("fsync {}", name), error);
  }
  return {};
}

Status make_directories(const std::filesystem::path& path) {
  if (path.empty()) return {};
  const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
  if (!std::filesystem::is_directory(path)) {
    FVMM_TRY(make_directories(path.parent_path()));
    if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
      const int error = errno;
      return Error(errc_of(error), fmt::format("mkdir {}", path.string()), error);
    }
  }
  // Also of one that is here: who made it may have died before its name was safe. A parent that we may not read is not
  // ours, and was not made here.
  Status synced = fsync_path(parent);
  return synced || synced.error().code() == Errc::kPermissionDenied ? Status{} : std::move(synced);
}

}  // namespace fvmm
