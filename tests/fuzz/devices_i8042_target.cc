// The keyboard controller's two ports, and what lies between and beside them.
#include "support/fuzz_ports.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fvmm::testing::PortFuzz(fvmm::devices::kI8042DataPort, fvmm::devices::kI8042CommandOffset + 2)
      .run(fvmm::testing::FuzzInput({data, size}));
  return 0;
}
