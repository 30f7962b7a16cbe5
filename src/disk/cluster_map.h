// What each cluster of a disk layer holds: nothing of its own, data, or zeros. Two bits a cluster, in memory and on
// disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"

namespace fvmm::disk {

inline constexpr std::uint64_t kSectorBytes = 512;
inline constexpr std::uint64_t kClusterBytes = 64 * 1024;
inline constexpr std::uint64_t kDiskBytesMax = 2ULL << 40;  // a map of 8 MiB
inline constexpr std::uint64_t kMapBlockBytes = 4096;       // what of a map is written at once
inline constexpr std::uint64_t kClustersPerBlock = kMapBlockBytes * 4;

using ClusterIndex = std::uint64_t;

enum class ClusterState : std::uint8_t {
  kAbsent = 0,  // the layer below has it
  kData = 1,    // this layer's file has it
  kZero = 2,    // reads as zeros, whatever is below
};

inline constexpr std::uint64_t clusters_of(std::uint64_t bytes) {
  return (bytes + kClusterBytes - 1) / kClusterBytes;
}

/// The states of a layer's clusters, and which blocks of the map have changed since they were taken for writing.
/// Owner: one Layer. Thread: the disk's I/O thread.
class ClusterMap {
 public:
  explicit ClusterMap(std::uint64_t clusters);

  [[nodiscard]] std::uint64_t clusters() const { return clusters_; }
  [[nodiscard]] ClusterState at(ClusterIndex cluster) const;
  void set(ClusterIndex cluster, ClusterState state);
  [[nodiscard]] std::uint64_t count(ClusterState state) const;

  /// Size of the map on disk: whole blocks. A function of the number of clusters alone.
  static std::uint64_t disk_bytes(std::uint64_t clusters);
  /// One block as it goes to disk, little endian.
  [[nodiscard]] std::vector<std::byte> block(std::uint64_t index) const;
  /// Takes a whole map as it came from disk. kDataLoss for a state that does not exist or one past the end.
  Status load(std::span<const std::byte> bytes);

  /// Blocks changed since the last call, ascending.
  std::vector<std::uint64_t> take_changed();
  void put_back(std::span<const std::uint64_t> blocks);  // they could not be written

 private:
  std::uint64_t clusters_;
  std::vector<std::uint64_t> words_;  // 32 clusters each; bits past the end are zero
  std::vector<bool> changed_;         // by block
};

}  // namespace fvmm::disk
