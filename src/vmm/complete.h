// Completes an instruction at which KVM's emulator has stopped.
#pragma once

#include <linux/kvm.h>

#include <optional>

#include "memory/guest_memory.h"
#include "vmm/instruction.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

/// Carries out the instruction of a KVM_EXIT_INTERNAL_ERROR and sets the registers behind it; the vCPU can run again.
/// Nothing when the exit is another error, carries no instruction bytes, or the instruction is not one of
/// instruction.h in a plain case: the vCPU is as it was. Thread: the vCPU's.
std::optional<Opcode> complete_instruction(int vcpu_fd, const kvm_run& run, const KvmFeatures& features,
                                           memory::GuestMemory& memory);

}  // namespace fvmm::vmm
