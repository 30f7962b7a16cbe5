// virtio-console behind its transport.
#include "support/fuzz_virtio.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fvmm::testing::VirtioFuzz(fvmm::testing::kind_named("console")).run(fvmm::testing::FuzzInput({data, size}));
  return 0;
}
