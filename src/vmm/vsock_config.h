// From a VM's configuration to its vsock device: the guest's address, and where the host's programs find it.
#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"
#include "devices/virtio_vsock.h"
#include "proto/config.pb.h"

namespace fvmm::vmm {

inline constexpr std::uint32_t kVsockCidFirst = 3;             // 0 to 2 are reserved (virtio 1.2, section 5.10.4)
inline constexpr std::uint32_t kVsockCidLast = 0xffff'fffe;    // as is the one after it
inline constexpr const char* kVsockSocketFile = "vsock.sock";  // in a VM's directory

/// Null: it has none.
const v1::VsockConfig* vsock_of(const v1::VmConfig& config);
/// kInvalidArgument: a reserved address, a relative path or one that is too long with a port behind it.
Status check_vsock(const v1::VsockConfig& config);
std::uint32_t vsock_cid(const v1::VsockConfig& config);
/// Where it listens. @param vm_directory  absolute
std::filesystem::path vsock_path(const v1::VsockConfig& config, const std::filesystem::path& vm_directory);
/// A clone is another VM: it listens in its own directory.
void forget_vsock_path(v1::VmConfig& config);
/// The path is taken and nobody can connect yet. Errors of UnixVsockHost.
Result<std::unique_ptr<devices::VsockHost>> open_vsock(const v1::VsockConfig& config,
                                                       const std::filesystem::path& vm_directory);
/// What a worker that has died left behind.
void remove_dead_vsock(const v1::VmConfig& config, const std::filesystem::path& vm_directory);
std::unique_ptr<devices::VirtioVsock> make_vsock(const v1::VsockConfig& config,
                                                 std::unique_ptr<devices::VsockHost> host, devices::OutputGate& gate);

}  // namespace fvmm::vmm
