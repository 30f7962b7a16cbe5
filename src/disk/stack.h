// Where each cluster of a disk lies: a writable layer over sealed layers over a raw base image, or a raw image alone.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "disk/layer.h"

namespace fvmm::disk {

inline constexpr std::size_t kLayersMax = 64;  // of one disk; a deeper stack must be folded first

/// Where bytes can be read. Zeros need no file.
struct Extent {
  int fd = -1;  // -1: zeros
  std::uint64_t offset = 0;
  [[nodiscard]] bool zeros() const { return fd < 0; }
  bool operator==(const Extent&) const = default;
};

/// A raw image: a regular file or a block device.
struct RawImage {
  UniqueFd file;
  std::uint64_t bytes = 0;
};

/// Opens a raw image and learns its size. kInvalidArgument for what is neither file nor block device, or is empty.
Result<RawImage> open_raw(const std::filesystem::path& path, bool writable);

using LowerLayers = std::vector<std::shared_ptr<const Layer>>;  // the highest first

/// All files of one disk. Owner: its Engine. Thread: the disk's I/O thread.
class Stack {
 public:
  /// A raw image alone. Read-only unless `writable`. Its size is rounded down to whole sectors.
  static Stack raw(RawImage image, bool writable);
  /// `top` is written to; `lower` are sealed, the highest first; `base` may be missing, then zeros are below all.
  /// kInvalidArgument when sizes differ, the base is larger than the disk, or a layer's parent is not what lies below
  /// it; kResourceExhausted for more than kLayersMax layers.
  static Result<Stack> layered(std::unique_ptr<Layer> top, LowerLayers lower, RawImage base);

  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }
  [[nodiscard]] bool writable() const { return writable_; }
  [[nodiscard]] bool is_raw() const { return top_ == nullptr; }
  [[nodiscard]] Layer* top() { return top_.get(); }
  [[nodiscard]] const Layer* top() const { return top_.get(); }
  [[nodiscard]] const LowerLayers& lower() const { return lower_; }
  /// Other lower layers, which show the same; not none. As Layer::lie_on().
  Status lie_on(LowerLayers lower);
  /// From here on writes go to `next`, an empty layer over the highest one, which is returned and lies below it now.
  /// kResourceExhausted for more than kLayersMax layers.
  Result<std::shared_ptr<Layer>> put_over(std::unique_ptr<Layer> next);
  [[nodiscard]] int write_fd() const { return top_ ? top_->fd() : base_.file.get(); }
  [[nodiscard]] int base_fd() const { return base_.file.get(); }  // -1: zeros are below all

  /// Whether it is the base's, which may be shorter than the disk: past its end are zeros.
  [[nodiscard]] bool is_base(int fd) const { return !is_raw() && fd == base_.file.get(); }

  /// Where to read the cluster.
  [[nodiscard]] Extent find(ClusterIndex cluster) const;
  /// Whether a write goes straight to the file that is written to, without copying first.
  [[nodiscard]] bool direct(ClusterIndex cluster) const;
  /// Where a write of that cluster goes.
  [[nodiscard]] std::uint64_t write_offset(ClusterIndex cluster) const;

 private:
  Stack() = default;
  std::uint64_t bytes_ = 0;
  bool writable_ = false;
  std::unique_ptr<Layer> top_;
  LowerLayers lower_;
  RawImage base_;
};

}  // namespace fvmm::disk
