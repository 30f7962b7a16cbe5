#include "memory/sparse_copy.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/file.h"
#include "base/units.h"

namespace fvmm::memory {
namespace {

constexpr std::uint64_t kBufferBytes = 1 * kMiB;

struct Extent {
  std::uint64_t begin;  // of the next data
  std::uint64_t end;
};

/// The first data in [at, end) of a file; empty, at `end`, when there is none.
Result<Extent> next_data(int file, std::uint64_t at, std::uint64_t end) {
  const off_t data = ::lseek(file, static_cast<off_t>(at), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return Extent{.begin = end, .end = end};  // lseek(2): only a hole is left
  if (data < 0) return Error(Errc::kIo, "SEEK_DATA", errno);
  const off_t hole = ::lseek(file, data, SEEK_HOLE);
  if (hole < 0) return Error(Errc::kIo, "SEEK_HOLE", errno);
  return Extent{.begin = std::min(end, static_cast<std::uint64_t>(data)),
                .end = std::min(end, static_cast<std::uint64_t>(hole))};
}

Status copy_through_buffer(int from, std::uint64_t from_offset, int to, std::uint64_t to_offset, std::uint64_t bytes) {
  std::vector<std::byte> buffer(std::min(bytes, kBufferBytes));
  for (std::uint64_t done = 0; done < bytes;) {
    const auto part = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), bytes - done));
    FVMM_TRY(read_all(from, part, from_offset + done));
    FVMM_TRY(write_all(to, part, to_offset + done));
    done += part.size();
  }
  return {};
}

bool is_unsupported(int error) {
  return error == EXDEV || error == EOPNOTSUPP || error == ENOSYS || error == EINVAL;
}

Status copy_data(int from, std::uint64_t from_offset, int to, std::uint64_t to_offset, std::uint64_t bytes) {
  auto in = static_cast<off_t>(from_offset);
  auto out = static_cast<off_t>(to_offset);
  for (std::uint64_t left = bytes; left > 0;) {
    const ssize_t copied = ::copy_file_range(from, &in, to, &out, left, 0);
    if (copied > 0) {
      left -= static_cast<std::uint64_t>(copied);
      continue;
    }
    if (copied < 0 && errno == EINTR) continue;
    if (copied == 0 || is_unsupported(errno)) {  // 0: the end, or a filesystem that says so without reason
      return copy_through_buffer(from, static_cast<std::uint64_t>(in), to, static_cast<std::uint64_t>(out), left);
    }
    const int error = errno;
    const bool full = error == ENOSPC || error == EDQUOT;
    return Error(full ? Errc::kResourceExhausted : Errc::kIo, "copy_file_range", error);
  }
  return {};
}

}  // namespace

Status punch_hole(int file, std::uint64_t offset, std::uint64_t bytes) {
  constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (::fallocate(file, kPunch, static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0) return {};
  if (!is_unsupported(errno)) return Error(Errc::kIo, "punch a hole", errno);
  const std::vector<std::byte> zeros(std::min(bytes, kBufferBytes));
  for (std::uint64_t done = 0; done < bytes; done += zeros.size()) {
    FVMM_TRY(
        write_all(file, std::span(zeros).first(std::min<std::uint64_t>(zeros.size(), bytes - done)), offset + done));
  }
  return {};
}

Status copy_sparse(int from, std::uint64_t from_offset, int to, std::uint64_t to_offset, std::uint64_t bytes,
                   Holes holes) {
  const std::uint64_t end = from_offset + bytes;
  for (std::uint64_t at = from_offset; at < end;) {
    const Extent data = FVMM_TRY(next_data(from, at, end));
    const std::uint64_t target = to_offset + (at - from_offset);
    if (holes == Holes::kPunch && data.begin > at) FVMM_TRY(punch_hole(to, target, data.begin - at));
    FVMM_TRY(copy_data(from, data.begin, to, target + (data.begin - at), data.end - data.begin));
    at = data.end;
  }
  return {};
}

bool clone_file(int from, int to) {
  return ::ioctl(to, FICLONE, from) == 0;
}

}  // namespace fvmm::memory
