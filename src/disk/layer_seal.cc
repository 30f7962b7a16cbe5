// Sealing a layer: what it holds is hashed, and from then on it is what others lie on.
#include <sys/stat.h>
#include <xxhash.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "base/file.h"
#include "disk/layer.h"
#include "disk/layer_header.h"

namespace fvmm::disk {
namespace {

class ContentHash {
 public:
  ContentHash() : state_(XXH3_createState(), XXH3_freeState) { XXH3_128bits_reset(state_.get()); }
  void update(std::span<const std::byte> bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }
  [[nodiscard]] Id finish() const {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
    Id id;
    std::ranges::copy(std::as_bytes(std::span(canonical.digest)), id.bytes.begin());
    return id;
  }

 private:
  std::unique_ptr<XXH3_state_t, XXH_errorcode (*)(XXH3_state_t*)> state_;
};

}  // namespace

// Whose it is and what lies below, then the map, then each cluster of data, ascending.
Result<Id> Layer::content() const {
  ContentHash hash;
  hash.update(info_.id.bytes);
  hash.update(info_.parent.bytes);
  hash.update(std::as_bytes(std::span(&info_.disk_bytes, 1)));
  const std::uint64_t blocks = ClusterMap::disk_bytes(map_.clusters()) / kMapBlockBytes;
  for (std::uint64_t block = 0; block < blocks; ++block) hash.update(map_.block(block));
  std::vector<std::byte> bytes(kClusterBytes);
  for (ClusterIndex cluster = 0; cluster < map_.clusters(); ++cluster) {
    if (map_.at(cluster) != ClusterState::kData) continue;
    FVMM_TRY(read_all(fd(), bytes, data_offset(cluster)), path_.string());
    hash.update(bytes);
  }
  return hash.finish();
}

Status Layer::seal() {
  if (sealed_) return {};
  const Id content = FVMM_TRY(this->content(), "seal");
  FVMM_TRY(write_layer_header(fd(), info_, content), "seal " + path_.string());
  FVMM_TRY(fsync_fd(fd(), path_.string()));
  if (::fchmod(fd(), 0400) != 0) return Error(Errc::kIo, "chmod " + path_.string(), errno);
  sealed_ = content;
  return {};
}

Status Layer::verify() const {
  if (!sealed_) return Error(Errc::kFailedPrecondition, path_.string() + " is not sealed: it may be written to");
  const Id found = FVMM_TRY(content());
  if (found == *sealed_) return {};
  return Error(Errc::kDataLoss, path_.string() + ": its content is not what was sealed");
}

}  // namespace fvmm::disk
