// virtio-balloon behind its transport. Requests of page numbers come from what the driver has scribbled.
#include "support/fuzz_virtio.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fvmm::testing::VirtioFuzz(fvmm::testing::kind_named("balloon")).run(fvmm::testing::FuzzInput({data, size}));
  return 0;
}
