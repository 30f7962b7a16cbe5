// What fvmmd accepts as a VM, before anything is made for it. Messages name the value and the limit.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "proto/config.pb.h"

namespace fvmm::daemon {

inline constexpr std::size_t kNameBytesMax = 64;
inline constexpr std::size_t kCmdlineBytesMax = 4095;
inline constexpr unsigned kVcpusMax = 16;

/// Of this host, in bytes: /proc/meminfo, proc(5).
struct HostMemory {
  std::uint64_t total = 0;
  std::uint64_t available = 0;
};
Result<HostMemory> read_host_memory();
Result<HostMemory> parse_meminfo(const std::string& text);  // kDataLoss when a field is missing

/// [A-Za-z0-9._-]{1,64}, and not "." or "..". `what`: "VM", "template".
Status check_name(std::string_view what, std::string_view name);
/// Everything but the files and the host: also what a peer sends must pass it.
Status check_config(const v1::VmConfig& config);
/// kResourceExhausted naming both sizes.
Status check_fits(const v1::VmConfig& config, const HostMemory& host);
/// Kernel, and initrd if any: absolute paths of readable regular files. kNotFound, kPermissionDenied, kInvalidArgument.
Status check_files(const v1::VmConfig& config);

}  // namespace fvmm::daemon
