// A TAP device as a backend: frames pass with their virtio header, so the host's kernel finishes checksums and segments
// only where a wire needs it.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "base/unique_fd.h"
#include "devices/net_backend.h"

namespace fvmm::devices {

/// Attaches to an existing TAP device. Errors name it and what to do: kInvalidArgument (no name of a device, or another
/// kind of device), kNotFound, kAlreadyExists (somebody else has it), kPermissionDenied, kFailedPrecondition (this
/// kernel's TAP has no virtio header), kIo. Warns in the log when the device is down.
Result<UniqueFd> open_tap(const std::string& name);

class TapBackend final : public NetBackend {
 public:
  /// `fd` is from open_tap(), perhaps of another process. kFailedPrecondition when it is something else.
  static Result<std::unique_ptr<NetBackend>> adopt(UniqueFd fd);

  [[nodiscard]] bool offloads() const override { return true; }
  Status set_offloads(const NetOffloads& offloads) override;
  [[nodiscard]] int fd() const override { return gone_ ? -1 : fd_.get(); }
  std::optional<std::size_t> receive(std::span<std::byte> out) override;
  void discard_waiting() override;
  void emit(std::span<const std::byte> frame) override;
  void close() override;

 private:
  explicit TapBackend(UniqueFd fd) : fd_(std::move(fd)) {}

  std::mutex mutex_;  // emit() against close()
  UniqueFd fd_;
  bool gone_ = false;  // the device was removed
};

}  // namespace fvmm::devices
