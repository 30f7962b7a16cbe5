#include "disk/layer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/file.h"
#include "base/scope_exit.h"

namespace fvmm::disk {

namespace {

constexpr std::array<char, 8> kMagic = {'F', 'V', 'M', 'M', 'D', 'I', 'S', 'K'};
constexpr std::uint64_t kHeaderBytes = 4096;

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

std::uint64_t checksum_of(const Header& header) {
  return XXH3_64bits(&header, offsetof(Header, checksum));
}

std::uint64_t data_begin(std::uint64_t disk_bytes) {
  const std::uint64_t end = kHeaderBytes + ClusterMap::disk_bytes(clusters_of(disk_bytes));
  return clusters_of(end) * kClusterBytes;
}

std::uint64_t file_bytes(std::uint64_t disk_bytes) {
  return data_begin(disk_bytes) + clusters_of(disk_bytes) * kClusterBytes;
}

Status check_size(std::uint64_t disk_bytes) {
  if (disk_bytes != 0 && disk_bytes % kSectorBytes == 0 && disk_bytes <= kDiskBytesMax) return {};
  return Error(Errc::kInvalidArgument, "a disk of " + std::to_string(disk_bytes) + " bytes: it must be a multiple of " +
                                           std::to_string(kSectorBytes) + ", at least one and at most " +
                                           std::to_string(kDiskBytesMax));
}

Result<LayerInfo> decode(const Header& header) {
  if (header.magic != kMagic) return Error(Errc::kDataLoss, "not a disk layer (no FVMMDISK at its start)");
  if (header.checksum != checksum_of(header)) return Error(Errc::kDataLoss, "the header's checksum is wrong");
  if (header.version > kLayerVersion) {
    return Error(Errc::kUnimplemented, "disk layer of version " + std::to_string(header.version) +
                                           "; this program reads up to " + std::to_string(kLayerVersion));
  }
  if (header.version == 0 || header.cluster_bytes != kClusterBytes || !check_size(header.disk_bytes)) {
    return Error(Errc::kDataLoss, "the header's version or sizes cannot be");
  }
  return LayerInfo{.id = {header.id}, .parent = {header.parent}, .disk_bytes = header.disk_bytes};
}

Result<LayerInfo> read_header(int fd) {
  Header header{};
  FVMM_TRY(read_all(fd, std::as_writable_bytes(std::span(&header, 1)), 0));
  return decode(header);
}

}  // namespace

Layer::Layer(std::filesystem::path path, UniqueFd file, const LayerInfo& info)
    : path_(std::move(path)), file_(std::move(file)), info_(info), map_(clusters_of(info.disk_bytes)) {}

std::uint64_t Layer::data_offset(ClusterIndex cluster) const {
  return data_begin(info_.disk_bytes) + cluster * kClusterBytes;
}

std::uint64_t Layer::map_offset(std::uint64_t block) {
  return kHeaderBytes + block * kMapBlockBytes;
}

Result<std::unique_ptr<Layer>> Layer::create(const std::filesystem::path& path, const LayerInfo& info) {
  FVMM_TRY(check_size(info.disk_bytes), path.string());
  UniqueFd file = FVMM_TRY(open_file(path, O_RDWR | O_CREAT | O_EXCL));
  ScopeExit discard([&path] { ::unlink(path.c_str()); });
  Header header{.magic = kMagic,
                .version = kLayerVersion,
                .cluster_bytes = kClusterBytes,
                .disk_bytes = info.disk_bytes,
                .id = info.id.bytes,
                .parent = info.parent.bytes,
                .checksum = 0};
  header.checksum = checksum_of(header);
  if (::ftruncate(file.get(), static_cast<off_t>(file_bytes(info.disk_bytes))) != 0) {
    return Error(errno == ENOSPC || errno == EFBIG ? Errc::kResourceExhausted : Errc::kIo, "ftruncate " + path.string(),
                 errno);
  }
  FVMM_TRY(write_all(file.get(), std::as_bytes(std::span(&header, 1)), 0), path.string());
  FVMM_TRY(fsync_fd(file.get(), path.string()));
  FVMM_TRY(fsync_path(path.parent_path()));
  discard.dismiss();
  return std::unique_ptr<Layer>(new Layer(path, std::move(file), info));
}

Result<std::unique_ptr<Layer>> Layer::open(const std::filesystem::path& path, Access access) {
  UniqueFd file = FVMM_TRY(open_file(path, access == Access::kWrite ? O_RDWR : O_RDONLY));
  const LayerInfo info = FVMM_TRY(read_header(file.get()), path.string());
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return Error(Errc::kIo, "fstat " + path.string(), errno);
  if (static_cast<std::uint64_t>(status.st_size) != file_bytes(info.disk_bytes)) {
    return Error(Errc::kDataLoss, path.string() + ": " + std::to_string(status.st_size) +
                                      " bytes where a layer of this disk has " +
                                      std::to_string(file_bytes(info.disk_bytes)));
  }
  std::unique_ptr<Layer> layer(new Layer(path, std::move(file), info));
  FVMM_TRY(layer->read_map(), path.string());
  return layer;
}

Result<bool> Layer::is_layer(int fd) {
  std::array<char, kMagic.size()> magic{};
  const ssize_t got = ::pread(fd, magic.data(), magic.size(), 0);
  if (got < 0) return Error(Errc::kIo, "read", errno);
  return magic == kMagic;
}

Status Layer::read_map() {
  std::vector<std::byte> map(ClusterMap::disk_bytes(clusters_of(info_.disk_bytes)));
  FVMM_TRY(read_all(fd(), map, map_offset(0)));
  return map_.load(map);
}

Status Layer::reread() {
  const LayerInfo now = FVMM_TRY(read_header(fd()), path_.string());
  if (now.id != info_.id || now.parent != info_.parent || now.disk_bytes != info_.disk_bytes) {
    return Error(Errc::kFailedPrecondition, path_.string() + " has become another layer since it was opened");
  }
  FVMM_TRY(read_map(), path_.string());
  return {};
}

}  // namespace fvmm::disk
