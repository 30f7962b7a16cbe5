#include "daemon/checks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <optional>

#include "base/file.h"
#include "base/id.h"
#include "base/units.h"
#include "memory/layout.h"
#include "memory/tracking.h"
#include "vmm/cpu_template.h"
#include "vmm/virtio_devices.h"

namespace fvmm::daemon {
namespace {

std::optional<std::uint64_t> meminfo_field(const std::string& text, std::string_view field) {
  const auto at = text.find(field);
  if (at == std::string::npos) return std::nullopt;
  auto begin = text.find_first_of("0123456789", at + field.size());
  if (begin == std::string::npos) return std::nullopt;
  std::uint64_t kib = 0;
  const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), kib);
  if (error != std::errc{}) return std::nullopt;
  return kib * kKiB;
}

Status check_file(std::string_view what, const std::string& path) {
  if (!path.starts_with('/')) {
    return Error(Errc::kInvalidArgument, fmt::format("{} \"{}\" must be an absolute path on this host", what, path));
  }
  const UniqueFd fd = FVMM_TRY(open_file(path, O_RDONLY | O_NONBLOCK), what);  // O_NONBLOCK: a FIFO must not hold us
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return Error(Errc::kIo, fmt::format("{}: stat {}", what, path), errno);
  if (!S_ISREG(info.st_mode)) {
    return Error(Errc::kInvalidArgument, fmt::format("{} {} is not a regular file", what, path));
  }
  return {};
}

}  // namespace

Result<HostMemory> parse_meminfo(const std::string& text) {
  const auto total = meminfo_field(text, "MemTotal:");
  const auto available = meminfo_field(text, "MemAvailable:");
  if (!total || !available) return Error(Errc::kDataLoss, "/proc/meminfo lacks MemTotal or MemAvailable");
  return HostMemory{*total, *available};
}

Result<HostMemory> read_host_memory() {
  std::ifstream file("/proc/meminfo");
  return parse_meminfo(std::string(std::istreambuf_iterator<char>(file), {}));
}

Status check_name(std::string_view what, std::string_view name) {
  const auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  if (!name.empty() && name.size() <= kNameBytesMax && std::ranges::all_of(name, good) && name != "." && name != "..") {
    return {};
  }
  return Error(Errc::kInvalidArgument,
               fmt::format("\"{}\" is no {} name: use 1 to {} of letters, digits, '.', '_' and '-'",
                           name.substr(0, 2 * kNameBytesMax), what, kNameBytesMax));
}

Status check_config(const v1::VmConfig& config) {
  FVMM_TRY(check_name("VM", config.name()));
  FVMM_TRY(memory::Layout::of(config.memory_bytes()), "memory");
  if (config.vcpus() < 1 || config.vcpus() > kVcpusMax) {
    return Error(Errc::kInvalidArgument, fmt::format("vcpus must be 1 to {}, not {}", kVcpusMax, config.vcpus()));
  }
  if (config.cmdline().size() > kCmdlineBytesMax) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("the command line has {} bytes, more than {}", config.cmdline().size(), kCmdlineBytesMax));
  }
  if (config.has_cpu()) {
    FVMM_TRY(vmm::check_cpu_template(config.cpu()), "CPU template " + config.cpu().name());
  } else if (!config.cpu_template().empty()) {
    FVMM_TRY(vmm::builtin_cpu_template(config.cpu_template()));  // a file's text goes with the VM
  }
  FVMM_TRY(memory::parse_tracking(config.tracking()));
  if (config.acpi() != (config.generation_id().size() == sizeof(Id))) {
    return Error(Errc::kInvalidArgument, "a VM has a generation id of 16 bytes with ACPI tables, and none without");
  }
  return vmm::check_virtio(config);
}

Status check_fits(const v1::VmConfig& config, const HostMemory& host) {
  if (config.memory_bytes() <= host.available) return {};
  return Error(Errc::kResourceExhausted,
               fmt::format("VM {} needs {}, this host has {} available: give it less memory, or stop another VM",
                           config.name(), format_bytes(config.memory_bytes()), format_bytes(host.available)));
}

Status check_files(const v1::VmConfig& config) {
  if (config.kernel().empty()) return Error(Errc::kInvalidArgument, "a kernel is needed (--kernel FILE)");
  FVMM_TRY(check_file("kernel", config.kernel()));
  if (!config.initrd().empty()) FVMM_TRY(check_file("initrd", config.initrd()));
  return {};
}

}  // namespace fvmm::daemon
