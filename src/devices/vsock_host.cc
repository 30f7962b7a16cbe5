#include "devices/vsock_host.h"

#include <fmt/format.h>

namespace fvmm::devices {
namespace {

constexpr int kBacklog = 64;  // programs that connect while the VM is paused wait here

}  // namespace

Result<std::unique_ptr<UnixVsockHost>> UnixVsockHost::bind(const std::filesystem::path& path) {
  if (path.native().size() > kVsockPathBytesMax) {
    return Error(Errc::kInvalidArgument, fmt::format("{} is {} bytes long; with a port behind it, it may have {}",
                                                     path.string(), path.native().size(), kVsockPathBytesMax));
  }
  BoundSocket socket = FVMM_TRY(BoundSocket::bind(path), path.string());
  return std::unique_ptr<UnixVsockHost>(new UnixVsockHost(std::move(socket)));
}

Status UnixVsockHost::listen() {
  if (listens_ || !socket_) return {};
  FVMM_TRY(socket_.listen(kBacklog), path());
  listens_ = true;
  return {};
}

Result<UniqueFd> UnixVsockHost::connect(std::uint32_t port) {
  return connect_to_path(fmt::format("{}_{}", path(), port));
}

}  // namespace fvmm::devices
