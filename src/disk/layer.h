// One layer of a virtual disk: a sparse file with a header, a map of its clusters, and the clusters at their own
// places.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "base/id.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "disk/cluster_map.h"

namespace fvmm::disk {

inline constexpr std::uint32_t kLayerVersion = 1;        // of a layer that is written to
inline constexpr std::uint32_t kSealedLayerVersion = 2;  // of one that never changes again

/// What a layer's header says. `parent` is zero for a layer with nothing below but zeros or a raw base image.
struct LayerInfo {
  Id id;
  Id parent;
  std::uint64_t disk_bytes = 0;  // a multiple of kSectorBytes, at most kDiskBytesMax
};

/// An open layer file (docs/disk-format.md). The map on disk may be older than the map here, never newer than the data:
/// a cluster is named kData on disk only after its data was synced. Owner: a Stack. Thread: the disk's I/O thread.
class Layer {
 public:
  enum class Access { kRead, kWrite };

  /// Makes an empty layer, durable with its name. kAlreadyExists, kInvalidArgument for the size, kResourceExhausted.
  static Result<std::unique_ptr<Layer>> create(const std::filesystem::path& path, const LayerInfo& info);
  /// kNotFound; kDataLoss for a file that is not a whole layer; kUnimplemented for a version of the future;
  /// kFailedPrecondition to write to a sealed one.
  static Result<std::unique_ptr<Layer>> open(const std::filesystem::path& path, Access access);

  /// Whether the file says at its start that it is a layer, whole or not. kIo.
  static Result<bool> is_layer(int fd);
  /// Header and map again, as another host may have written them since. kFailedPrecondition when it is another layer
  /// now; errors as open(). What was changed here and not written is lost.
  Status reread();

  /// Another layer below it, which shows the same as the one before. Not yet durable: both must be there until it is,
  /// by seal(). kIo.
  Status lie_on(const Id& parent);
  /// What has changed of the map goes to the file, not yet durable; its data is written. kIo, kResourceExhausted.
  Status write_map();
  /// From here on it never changes: its content is hashed, the header says so, durable, and its mode allows no writer.
  /// All that was written is flushed, and nothing writes to it any more. Sealed already: nothing. kIo. Reads all of its
  /// data. Thread: any one, also while it is read as a lower layer.
  Status seal();
  /// Of a sealed one: whether map and data are what was sealed. kDataLoss; kFailedPrecondition when it is not sealed.
  [[nodiscard]] Status verify() const;
  [[nodiscard]] bool sealed() const { return sealed_.has_value(); }
  /// Its file has another name now.
  void moved(std::filesystem::path path) { path_ = std::move(path); }

  [[nodiscard]] const LayerInfo& info() const { return info_; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] int fd() const { return file_.get(); }
  [[nodiscard]] const ClusterMap& map() const { return map_; }
  [[nodiscard]] ClusterMap& map() { return map_; }
  [[nodiscard]] std::uint64_t data_offset(ClusterIndex cluster) const;
  [[nodiscard]] static std::uint64_t map_offset(std::uint64_t block);

 private:
  Layer(std::filesystem::path path, UniqueFd file, const LayerInfo& info);
  Status read_map();
  [[nodiscard]] Result<Id> content() const;
  std::filesystem::path path_;
  UniqueFd file_;
  LayerInfo info_;
  ClusterMap map_;
  std::optional<Id> sealed_;  // XXH3-128 of the content then
};

}  // namespace fvmm::disk
