#include "daemon/host_service.h"

#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>

#include "daemon/checks.h"

namespace fvmm::daemon {

Result<v1::HostInfo> HostService::info() const {
  const HostMemory memory = FVMM_TRY(read_host_memory());
  v1::HostInfo out;
  out.set_version(kVersion);
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) == 0) out.set_hostname(name.data());
  out.set_memory_bytes(memory.total);
  out.set_memory_available_bytes(memory.available);
  std::error_code ignored;
  out.set_pvm(std::filesystem::exists("/sys/module/kvm_pvm", ignored));
  std::string boot_id;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id") >> std::ws, boot_id);
  out.set_boot_id(boot_id);
  out.set_listen(listen_);
  for (std::string& cpu : FVMM_TRY(cpus_.names())) out.add_cpu_templates(std::move(cpu));
  out.set_warm_workers(warm_workers_());
  return out;
}

void HostService::bind(control::Server& server) {
  server.unary<v1::Empty, v1::HostInfo>("fvmm.v1.Host/Info",
                                        [this](control::Call&, const v1::Empty&) { return info(); });
}

}  // namespace fvmm::daemon
