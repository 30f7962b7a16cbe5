#include "disk/layer_header.h"

#include <xxhash.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <span>
#include <string>

#include <unistd.h>

#include "base/file.h"

namespace fvmm::disk {
namespace {

constexpr std::array<char, 8> kMagic = {'F', 'V', 'M', 'M', 'D', 'I', 'S', 'K'};

/// The first block of a layer file, little endian (docs/disk-format.md).
struct Header {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t cluster_bytes;
  std::uint64_t disk_bytes;
  std::array<std::byte, 16> id;
  std::array<std::byte, 16> parent;
  std::uint64_t checksum;  // XXH3_64bits of all before it
};
static_assert(sizeof(Header) == 64);

/// Behind the header of a sealed layer.
struct Seal {
  std::array<std::byte, 16> content;  // XXH3-128: content_of()
  std::uint64_t checksum;             // XXH3_64bits of the header and of `content`
};
static_assert(sizeof(Seal) == 24);

struct Start {
  Header header;
  Seal seal;
};

std::uint64_t checksum_of(const Start& start) {
  return XXH3_64bits(&start, offsetof(Start, seal) + offsetof(Seal, checksum));
}

std::uint64_t checksum_of(const Header& header) {
  return XXH3_64bits(&header, offsetof(Header, checksum));
}

Result<LayerInfo> decode(const Header& header) {
  if (header.magic != kMagic) return Error(Errc::kDataLoss, "not a disk layer (no FVMMDISK at its start)");
  if (header.checksum != checksum_of(header)) return Error(Errc::kDataLoss, "the header's checksum is wrong");
  if (header.version > kSealedLayerVersion) {
    return Error(Errc::kUnimplemented, "disk layer of version " + std::to_string(header.version) +
                                           "; this program reads up to " + std::to_string(kSealedLayerVersion));
  }
  if (header.version == 0 || header.cluster_bytes != kClusterBytes || !check_disk_bytes(header.disk_bytes)) {
    return Error(Errc::kDataLoss, "the header's version or sizes cannot be");
  }
  return LayerInfo{.id = {header.id}, .parent = {header.parent}, .disk_bytes = header.disk_bytes};
}

Header header_of(const LayerInfo& info, std::uint32_t version) {
  Header header{.magic = kMagic,
                .version = version,
                .cluster_bytes = kClusterBytes,
                .disk_bytes = info.disk_bytes,
                .id = info.id.bytes,
                .parent = info.parent.bytes,
                .checksum = 0};
  header.checksum = checksum_of(header);
  return header;
}

}  // namespace

Status check_disk_bytes(std::uint64_t disk_bytes) {
  if (disk_bytes != 0 && disk_bytes % kSectorBytes == 0 && disk_bytes <= kDiskBytesMax) return {};
  return Error(Errc::kInvalidArgument, "a disk of " + std::to_string(disk_bytes) + " bytes: it must be a multiple of " +
                                           std::to_string(kSectorBytes) + ", at least one and at most " +
                                           std::to_string(kDiskBytesMax));
}

Result<LayerHeader> read_layer_header(int fd) {
  Start start{};
  FVMM_TRY(read_all(fd, std::as_writable_bytes(std::span(&start, 1)), 0));
  LayerHeader found{.info = FVMM_TRY(decode(start.header)), .sealed = std::nullopt};
  if (start.header.version < kSealedLayerVersion) return found;
  if (start.seal.checksum != checksum_of(start)) return Error(Errc::kDataLoss, "the checksum of its seal is wrong");
  found.sealed = Id{start.seal.content};
  return found;
}

Status write_layer_header(int fd, const LayerInfo& info, const std::optional<Id>& sealed) {
  Start start{.header = header_of(info, sealed ? kSealedLayerVersion : kLayerVersion), .seal = {}};
  if (!sealed) return write_all(fd, std::as_bytes(std::span(&start.header, 1)), 0);
  start.seal.content = sealed->bytes;
  start.seal.checksum = checksum_of(start);
  return write_all(fd, std::as_bytes(std::span(&start, 1)), 0);
}

Result<bool> Layer::is_layer(int fd) {
  std::array<char, kMagic.size()> magic{};
  const ssize_t got = ::pread(fd, magic.data(), magic.size(), 0);
  if (got < 0) return Error(Errc::kIo, "read", errno);
  return magic == kMagic;
}

}  // namespace fvmm::disk
