// virtio-vsock behind its transport. Requests of one buffer are packets of every kind, on connections that may be
// there; programs wait at the host's socket, and some listen.
#include "support/fuzz_virtio.h"

namespace {

using namespace fvmm::devices;

constexpr std::uint32_t kGuestPort = 5;
constexpr std::uint32_t kPort = 80;  // a program listens here, and nobody at the next one
constexpr std::uint32_t kCallers = 6;

/// Packet `number` that a guest may send: eight operations on eight connections, the first of them a program's.
VsockHeader packet(unsigned number) {
  const unsigned connection = number / 8;
  const bool of_program = connection < kCallers;
  return {.src_cid = 42,
          .dst_cid = kVsockHostCid,
          .src_port = kGuestPort + connection,
          .dst_port = of_program ? (1U << 30) + connection : kPort + connection % 2,
          .len = 20,
          .op = static_cast<VsockOp>(number % 8),
          .flags = number,
          .buf_alloc = number % 3 == 0 ? 16U : 65536U,
          .fwd_cnt = number % 5 == 0 ? 7U : 0U};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using fvmm::testing::VirtioFuzz;
  fvmm::testing::VirtioKind kind = fvmm::testing::kind_named("vsock");
  std::shared_ptr<fvmm::testing::Programs> programs;
  unsigned calls = 0;
  kind.make = [&](fvmm::devices::OutputSink&) {
    programs = std::make_shared<fvmm::testing::Programs>();
    programs->listen(kPort);
    programs->greet("hello from the host");
    calls = 0;
    return fvmm::testing::vsock_over_pairs(programs);
  };
  kind.host_input = [&] {
    auto program = programs->call("CONNECT " + std::to_string(kGuestPort + calls) + "\nand more");
    if (calls % 3 == 1) program.shut_sending();
    if (calls++ % 3 != 2) programs->keep(std::move(program));
  };
  VirtioFuzz fuzz(kind, [](fvmm::testing::FuzzMachine& machine) {
    for (unsigned i = 0; i < VirtioFuzz::kBufferCount; ++i) {
      machine.guest_writes(VirtioFuzz::buffer(i), encode_vsock(packet(i)));
    }
  });
  fuzz.run(fvmm::testing::FuzzInput({data, size}));
  return 0;
}
