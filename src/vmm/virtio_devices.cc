#include "vmm/virtio_devices.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "devices/virtio_balloon.h"
#include "devices/virtio_console.h"
#include "devices/virtio_rng.h"
#include "vmm/disk_config.h"
#include "vmm/net_config.h"
#include "vmm/virtio_slots.h"
#include "vmm/vsock_config.h"

namespace fvmm::vmm {

Status check_virtio(const v1::VmConfig& config) {
  using Kind = v1::VirtioDevice::KindCase;
  const auto devices = static_cast<unsigned>(config.virtio_size() + config.disks_size() + config.nets_size());
  if (devices > kVirtioSlotsMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("{} virtio devices; a VM has at most {}", devices, kVirtioSlotsMax));
  }
  const auto count = [&](Kind kind) {
    return std::ranges::count_if(config.virtio(), [&](const v1::VirtioDevice& d) { return d.kind_case() == kind; });
  };
  if (count(Kind::KIND_NOT_SET) != 0) {
    return Error(Errc::kInvalidArgument, "a virtio device of a kind that this build does not know");
  }
  if (count(Kind::kRng) > 1) return Error(Errc::kInvalidArgument, "a VM has at most one virtio-rng device");
  if (count(Kind::kConsole) > 1) return Error(Errc::kInvalidArgument, "a VM has at most one virtio console");
  if (count(Kind::kBalloon) > 1) return Error(Errc::kInvalidArgument, "a VM has at most one virtio balloon");
  if (count(Kind::kVsock) > 1) return Error(Errc::kInvalidArgument, "a VM has at most one virtio vsock device");
  if (const v1::VsockConfig* const vsock = vsock_of(config)) FVMM_TRY(check_vsock(*vsock));
  FVMM_TRY(check_disks(config));
  return check_nets(config);
}

Result<std::unique_ptr<devices::VirtioDevice>> make_virtio(const v1::VirtioDevice& config, VirtioBackends backends) {
  switch (config.kind_case()) {
    case v1::VirtioDevice::kRng:
      return std::unique_ptr<devices::VirtioDevice>(std::make_unique<devices::VirtioRng>());
    case v1::VirtioDevice::kConsole:
      FVMM_CHECK(backends.console != nullptr, "a console has somewhere to write");
      return std::unique_ptr<devices::VirtioDevice>(std::make_unique<devices::VirtioConsole>(*backends.console));
    case v1::VirtioDevice::kBalloon:
      return std::unique_ptr<devices::VirtioDevice>(std::make_unique<devices::VirtioBalloon>());
    case v1::VirtioDevice::kVsock:
      if (!backends.vsock || backends.gate == nullptr) {
        return Error(Errc::kFailedPrecondition, "a vsock device, and no socket for it");
      }
      return std::unique_ptr<devices::VirtioDevice>(
          make_vsock(config.vsock(), std::move(backends.vsock), *backends.gate));
    case v1::VirtioDevice::KIND_NOT_SET:
      break;
  }
  return Error(Errc::kInvalidArgument, "a virtio device of a kind that this build does not know");
}

}  // namespace fvmm::vmm
