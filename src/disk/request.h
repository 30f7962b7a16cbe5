// What a disk is asked to do.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <vector>

#include "base/result.h"

namespace fvmm::disk {

inline constexpr std::size_t kRequestPartsMax = 1024;           // iovecs of one request: IOV_MAX
inline constexpr std::uint64_t kRequestBytesMax = 64ULL << 20;  // data of one read or write
inline constexpr std::uint64_t kRangeBytesMax = 4ULL << 30;     // of one discard or write-zeroes

/// One request, in whole sectors. The memory behind `data` stays alive and in place until the request has ended.
struct Request {
  enum class Kind : std::uint8_t { kRead, kWrite, kFlush, kDiscard, kWriteZeroes };
  Kind kind = Kind::kRead;
  std::uint64_t offset = 0;  // bytes; a multiple of kSectorBytes
  std::uint64_t bytes = 0;   // a multiple of kSectorBytes; of reads and writes the sum of `data`
  std::vector<iovec> data;
  std::uint64_t token = 0;  // of the caller
};

/// The parts of `parts` that hold bytes [offset, offset + bytes) of them.
std::vector<iovec> slice(const std::vector<iovec>& parts, std::uint64_t offset, std::uint64_t bytes);
void fill_zeros(const std::vector<iovec>& parts);
void copy_out(const std::vector<iovec>& parts, std::byte* to);

/// Whether a disk of that size can do this. kInvalidArgument, kOutOfRange, kPermissionDenied for a write to a read-only
/// disk.
Status check_request(const Request& request, std::uint64_t disk_bytes, bool writable);

}  // namespace fvmm::disk
