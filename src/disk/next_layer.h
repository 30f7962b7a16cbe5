// A disk goes on in a new layer, at an instant that its owner chooses: what was written until then is sealed, and can
// be shared.
//
//   prepare()   PATH.layers/OLD: a link to the layer ─► PATH.next: empty, locked, over OLD ─► renamed over PATH
//   take()      the instant: no I/O
//   neither     PATH.layers/OLD is renamed back over PATH
//
// Killed in between, PATH is an empty layer over what was written, which is the same disk.
#pragma once

#include <filesystem>
#include <memory>

#include "base/result.h"
#include "disk/layer.h"
#include "disk/lock.h"

namespace fvmm::disk {

/// Owner and thread: the disks of a VM.
class NextLayer {
 public:
  struct Taken {
    std::unique_ptr<Layer> layer;
    FileLock lock;
    std::filesystem::path old_path;  // of the layer that it lies on now
  };

  /// While the disk is written to. Its owner holds the writer's lock on `top`, the layer at `path`, so there is one of
  /// these at a time. Durable. kFailedPrecondition when the file has lost its name; kResourceExhausted, kIo.
  static Result<NextLayer> prepare(const std::filesystem::path& path, int top_fd, const LayerInfo& top);
  ~NextLayer();
  NextLayer(NextLayer&&) noexcept = default;
  NextLayer& operator=(NextLayer&&) = delete;
  NextLayer(const NextLayer&) = delete;
  NextLayer& operator=(const NextLayer&) = delete;

  Taken take();  // once

 private:
  NextLayer(std::filesystem::path path, std::filesystem::path old_path, std::unique_ptr<Layer> layer, FileLock lock)
      : path_(std::move(path)),
        old_path_(std::move(old_path)),
        layer_(std::move(layer)),
        lock_(std::make_unique<FileLock>(std::move(lock))) {}
  std::filesystem::path path_;
  std::filesystem::path old_path_;
  std::unique_ptr<Layer> layer_;  // null once taken
  std::unique_ptr<FileLock> lock_;
};

}  // namespace fvmm::disk
