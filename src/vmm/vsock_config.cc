#include "vmm/vsock_config.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/id.h"

namespace fvmm::vmm {

const v1::VsockConfig* vsock_of(const v1::VmConfig& config) {
  const auto found = std::ranges::find_if(config.virtio(), [](const v1::VirtioDevice& d) { return d.has_vsock(); });
  return found == config.virtio().end() ? nullptr : &found->vsock();
}

Status check_vsock(const v1::VsockConfig& config) {
  const std::uint32_t cid = vsock_cid(config);
  if (cid < kVsockCidFirst || cid > kVsockCidLast) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("vsock: cid {}; a guest has one of {} to {}", cid, kVsockCidFirst, kVsockCidLast));
  }
  const std::string& path = config.path();
  if (path.empty()) return {};
  if (!path.starts_with('/')) {
    return Error(Errc::kInvalidArgument, fmt::format("vsock: the path \"{}\" must be absolute", path));
  }
  if (path.size() > devices::kVsockPathBytesMax) {
    return Error(Errc::kInvalidArgument, fmt::format("vsock: a path of {} bytes; with a port behind it, it may have {}",
                                                     path.size(), devices::kVsockPathBytesMax));
  }
  return {};
}

std::uint32_t vsock_cid(const v1::VsockConfig& config) {
  return config.cid() == 0 ? kVsockCidFirst : config.cid();
}

std::filesystem::path vsock_path(const v1::VsockConfig& config, const std::filesystem::path& vm_directory) {
  return config.path().empty() ? vm_directory / kVsockSocketFile : std::filesystem::path(config.path());
}

void forget_vsock_path(v1::VmConfig& config) {
  for (v1::VirtioDevice& device : *config.mutable_virtio()) {
    if (device.has_vsock()) device.mutable_vsock()->clear_path();
  }
}

Result<std::unique_ptr<devices::VsockHost>> open_vsock(const v1::VsockConfig& config,
                                                       const std::filesystem::path& vm_directory) {
  return std::unique_ptr<devices::VsockHost>(
      FVMM_TRY(devices::UnixVsockHost::bind(vsock_path(config, vm_directory)), "vsock"));
}

void remove_dead_vsock(const v1::VmConfig& config, const std::filesystem::path& vm_directory) {
  const v1::VsockConfig* const vsock = vsock_of(config);
  if (vsock == nullptr) return;
  const std::filesystem::path path = vsock_path(*vsock, vm_directory);
  if (const Status gone = devices::remove_dead_socket(path); !gone) {
    spdlog::debug("vsock {} stays: {}", path.string(), gone.error().message());
  }
}

// The first port of the host's side is another one in each process: a guest that has come from elsewhere may still
// believe in a connection of the other host's.
std::unique_ptr<devices::VirtioVsock> make_vsock(const v1::VsockConfig& config,
                                                 std::unique_ptr<devices::VsockHost> host, devices::OutputGate& gate) {
  std::uint32_t first_port = 0;
  const Id random = Id::random();
  std::memcpy(&first_port, random.bytes.data(), sizeof first_port);
  return std::make_unique<devices::VirtioVsock>(devices::VirtioVsockSetup{
      .hub = {.guest_cid = vsock_cid(config), .host = std::move(host), .first_port = first_port}, .gate = gate});
}

}  // namespace fvmm::vmm
