#include "disk/stack.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/check.h"
#include "base/file.h"

namespace fvmm::disk {

Result<RawImage> open_raw(const std::filesystem::path& path, bool writable) {
  RawImage image{.file = FVMM_TRY(open_file(path, writable ? O_RDWR : O_RDONLY))};
  struct stat status {};
  if (::fstat(image.file.get(), &status) != 0) return Error(Errc::kIo, "fstat " + path.string(), errno);
  if (S_ISBLK(status.st_mode)) {
    if (::ioctl(image.file.get(), BLKGETSIZE64, &image.bytes) != 0)
      return Error(Errc::kIo, "BLKGETSIZE64 " + path.string(), errno);
  } else if (S_ISREG(status.st_mode)) {
    image.bytes = static_cast<std::uint64_t>(status.st_size);
  } else {
    return Error(Errc::kInvalidArgument, path.string() + " is neither a file nor a block device");
  }
  image.bytes -= image.bytes % kSectorBytes;
  if (image.bytes == 0)
    return Error(Errc::kInvalidArgument, path.string() + " holds less than one sector of 512 bytes");
  return image;
}

Stack Stack::raw(RawImage image, bool writable) {
  Stack stack;
  stack.bytes_ = image.bytes;
  stack.writable_ = writable;
  stack.base_ = std::move(image);
  return stack;
}

namespace {

Status check_below(const Layer& layer, const Layer* below, std::uint64_t disk_bytes) {
  if (layer.info().disk_bytes != disk_bytes) {
    return Error(Errc::kInvalidArgument, layer.path().string() + " is of a disk of " +
                                             std::to_string(layer.info().disk_bytes) +
                                             " bytes, the layer over it of one of " + std::to_string(disk_bytes));
  }
  const Id expected = below ? below->info().id : Id{};
  if (layer.info().parent == expected) return {};
  return Error(Errc::kInvalidArgument, layer.path().string() + " lies on layer " + layer.info().parent.hex() +
                                           ", and below it is " +
                                           (below ? below->info().id.hex() : std::string("none")));
}

Status check_depth(std::size_t layers) {
  if (layers <= kLayersMax) return {};
  return Error(Errc::kResourceExhausted, "a disk of " + std::to_string(layers) + " layers; at most " +
                                             std::to_string(kLayersMax) + " can lie on each other");
}

}  // namespace

Result<Stack> Stack::layered(std::unique_ptr<Layer> top, LowerLayers lower, RawImage base) {
  FVMM_CHECK(top != nullptr, "a layered disk has a layer that is written to");
  FVMM_TRY(check_depth(lower.size() + 1));
  const std::uint64_t bytes = top->info().disk_bytes;
  const Layer* over = top.get();
  for (const auto& layer : lower) {
    FVMM_TRY(check_below(*over, layer.get(), bytes));
    over = layer.get();
  }
  FVMM_TRY(check_below(*over, nullptr, bytes));
  if (base.bytes > bytes) {
    return Error(Errc::kInvalidArgument,
                 "the base image has " + std::to_string(base.bytes) + " bytes, its disk only " + std::to_string(bytes));
  }
  Stack stack;
  stack.bytes_ = bytes;
  stack.writable_ = true;
  stack.top_ = std::move(top);
  stack.lower_ = std::move(lower);
  stack.base_ = std::move(base);
  return stack;
}

Status Stack::lie_on(LowerLayers lower) {
  FVMM_CHECK(top_ != nullptr && !lower.empty(), "a layered disk lies on other layers");
  FVMM_TRY(top_->lie_on(lower.front()->info().id));
  lower_ = std::move(lower);
  return {};
}

Result<std::shared_ptr<Layer>> Stack::put_over(std::unique_ptr<Layer> next) {
  FVMM_CHECK(top_ != nullptr && next->info().parent == top_->info().id, "the next layer lies on this disk's highest");
  FVMM_TRY(check_depth(lower_.size() + 2));
  std::shared_ptr<Layer> old = std::move(top_);
  lower_.insert(lower_.begin(), old);
  top_ = std::move(next);
  return old;
}

Extent Stack::find(ClusterIndex cluster) const {
  const auto in = [cluster](const Layer& layer) -> Extent {
    if (layer.map().at(cluster) == ClusterState::kZero) return {};
    return {.fd = layer.fd(), .offset = layer.data_offset(cluster)};
  };
  if (top_ && top_->map().at(cluster) != ClusterState::kAbsent) return in(*top_);
  for (const auto& layer : lower_) {
    if (layer->map().at(cluster) != ClusterState::kAbsent) return in(*layer);
  }
  if (cluster * kClusterBytes >= base_.bytes) return {};
  return {.fd = base_.file.get(), .offset = cluster * kClusterBytes};
}

bool Stack::direct(ClusterIndex cluster) const {
  return is_raw() || top_->map().at(cluster) == ClusterState::kData;
}

std::uint64_t Stack::write_offset(ClusterIndex cluster) const {
  return top_ ? top_->data_offset(cluster) : cluster * kClusterBytes;
}

}  // namespace fvmm::disk
