// What to do with each KVM_RUN exit, and the report when nothing can be done.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "vmm/vcpu.h"

namespace fvmm::vmm {

/// Carries out one exit. A value means the guest cannot go on. Thread: the vCPU's.
std::optional<VcpuStop> handle_exit(int vcpu_fd, kvm_run& run, const VcpuEnvironment& environment);

/// `reason`, then registers and the code bytes at RIP, for logs and `vm show`. Thread: the vCPU's.
std::string describe_stop(int vcpu_fd, const memory::GuestMemory& memory, std::string_view reason);

}  // namespace fvmm::vmm
