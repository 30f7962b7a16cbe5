#include "disk/request.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "disk/cluster_map.h"

namespace fvmm::disk {

std::vector<iovec> slice(const std::vector<iovec>& parts, std::uint64_t offset, std::uint64_t bytes) {
  std::vector<iovec> out;
  for (const iovec& part : parts) {
    if (bytes == 0) break;
    if (offset >= part.iov_len) {
      offset -= part.iov_len;
      continue;
    }
    const std::size_t length = std::min<std::uint64_t>(part.iov_len - offset, bytes);
    out.push_back({.iov_base = static_cast<std::byte*>(part.iov_base) + offset, .iov_len = length});
    bytes -= length;
    offset = 0;
  }
  return out;
}

void fill_zeros(const std::vector<iovec>& parts) {
  for (const iovec& part : parts) std::memset(part.iov_base, 0, part.iov_len);
}

void copy_out(const std::vector<iovec>& parts, std::byte* to) {
  for (const iovec& part : parts) {
    std::memcpy(to, part.iov_base, part.iov_len);
    to += part.iov_len;
  }
}

Status check_request(const Request& request, std::uint64_t disk_bytes, bool writable) {
  using Kind = Request::Kind;
  if (request.kind == Kind::kFlush) return {};
  const bool data = request.kind == Kind::kRead || request.kind == Kind::kWrite;
  if (request.kind != Kind::kRead && !writable) return Error(Errc::kPermissionDenied, "the disk is read-only");
  if (request.offset % kSectorBytes != 0 || request.bytes % kSectorBytes != 0) {
    return Error(Errc::kInvalidArgument, "not whole sectors of 512 bytes");
  }
  if (request.bytes > (data ? kRequestBytesMax : kRangeBytesMax) || request.data.size() > kRequestPartsMax) {
    return Error(Errc::kInvalidArgument, "a request of " + std::to_string(request.bytes) + " bytes in " +
                                             std::to_string(request.data.size()) + " parts is too large");
  }
  if (request.offset > disk_bytes || request.bytes > disk_bytes - request.offset) {
    return Error(Errc::kOutOfRange, "past the end of the disk");
  }
  std::uint64_t sum = 0;
  for (const iovec& part : request.data) sum += part.iov_len;
  if (sum != (data ? request.bytes : 0)) return Error(Errc::kInvalidArgument, "the data's length is not the request's");
  return {};
}

}  // namespace fvmm::disk
