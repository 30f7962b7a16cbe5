// The virtio-mmio transport and its queues, with a device that keeps requests, answers out of order and gives back
// untaken.
#include "support/echo_device.h"
#include "support/fuzz_virtio.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fvmm::testing::VirtioKind kind{
      .name = "echo",
      .make = [](fvmm::devices::OutputSink&) { return std::make_unique<fvmm::testing::EchoDevice>(); },
      .queue = 0,
      .buffer_flags = fvmm::devices::virtio::kDescriptorWrite,
  };
  fvmm::testing::VirtioFuzz(kind).run(fvmm::testing::FuzzInput({data, size}));
  return 0;
}
