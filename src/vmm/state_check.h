// Whether a saved machine fits a VM, before anything of it is loaded.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "proto/state.pb.h"

namespace fvmm::vmm {

inline constexpr std::uint32_t kMachineStateVersion = 1;

/// The VM that a state is to go into.
struct StateShape {
  std::size_t vcpus = 1;
  std::uint32_t xsave_bytes = 4096;  // of this host; a state may have less
  bool sregs2 = true;
  std::string cpuid;  // packed, as the VM was given it (Vm::set_cpu)
};

/// Pure. kFailedPrecondition for a version of another build or what this host's KVM lacks; kInvalidArgument, naming the
/// part and its size, for anything that no build writes. A peer's and a file's state pass here first: nothing is
/// loaded unless all of it has the right form.
Status check_state(const v1::MachineState& state, const StateShape& shape);

}  // namespace fvmm::vmm
