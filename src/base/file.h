// Files as the store and the registry need them: whole reads, durable replacement, durable removal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/unique_fd.h"

namespace fvmm {

/// Opens with O_CLOEXEC; the error names the path.
Result<UniqueFd> open_file(const std::filesystem::path& path, int flags, unsigned mode = 0600);
/// Reads a whole file of at most `max_bytes`; kResourceExhausted past that, kNotFound when absent.
Result<std::string> read_file(const std::filesystem::path& path, std::uint64_t max_bytes);
/// Writes all bytes at the offset, retrying short writes. kResourceExhausted for ENOSPC/EDQUOT, else kIo.
Status write_all(int fd, std::span<const std::byte> bytes, std::uint64_t offset);
/// Reads exactly that many bytes; kDataLoss when the file ends before.
Status read_all(int fd, std::span<std::byte> bytes, std::uint64_t offset);
/// Temporary file, fsync, rename over `path`, fsync of the directory: afterwards the old or the new content, never a
/// mix.
Status replace_file(const std::filesystem::path& path, std::string_view content);
/// Unlinks and fsyncs the directory. Absent is fine.
Status remove_file(const std::filesystem::path& path);
Status fsync_path(const std::filesystem::path& path);  // a directory or a file
Status fsync_fd(int fd, std::string_view name);
/// Mode 0700, parents too. Durable when it returns OK: what is synced inside is not lost with the directory's own name.
Status make_directories(const std::filesystem::path& path);

inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace fvmm
