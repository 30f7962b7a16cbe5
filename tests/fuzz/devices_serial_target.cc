// The serial port's registers, and what lies beside them on the bus.
#include "support/fuzz_ports.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fvmm::testing::PortFuzz(fvmm::devices::kCom1Base, fvmm::devices::kUartPorts + 2)
      .run(fvmm::testing::FuzzInput({data, size}));
  return 0;
}
