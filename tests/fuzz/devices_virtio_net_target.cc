// virtio-net behind its transport, with frames on the wire that wait for the guest's buffers.
#include "support/fuzz_virtio.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fvmm::testing::VirtioKind kind = fvmm::testing::kind_named("net");
  kind.make = [](fvmm::devices::OutputSink&) {
    auto wire = std::make_shared<fvmm::testing::Wire>();
    for (unsigned i = 0; i < 24; ++i) {  // some longer than one buffer, some for somebody else
      wire->push(fvmm::testing::frame_to({2, 0x11, 0x22, 0x33, 0x44, static_cast<std::uint8_t>(0x55 + i % 2)},
                                         i % 8 == 7 ? 9000 : 60 + 90 * (i % 8), i));
    }
    return fvmm::testing::net_over_a_wire(std::move(wire));
  };
  fvmm::testing::VirtioFuzz(kind).run(fvmm::testing::FuzzInput({data, size}));
  return 0;
}
