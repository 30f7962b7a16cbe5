// virtio-rng behind its transport; its bytes must be the same on both machines.
#include "support/fuzz_virtio.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fvmm::testing::VirtioKind kind = fvmm::testing::kind_named("rng");
  kind.make = [](fvmm::devices::OutputSink&) {
    return std::make_unique<fvmm::devices::VirtioRng>(
        [](std::span<std::byte> out) { std::ranges::fill(out, std::byte{0x5a}); });
  };
  fvmm::testing::VirtioFuzz(kind).run(fvmm::testing::FuzzInput({data, size}));
  return 0;
}
