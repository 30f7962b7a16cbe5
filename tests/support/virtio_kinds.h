// Every virtio device, with one request that it answers. A new device adds itself here: the conformance suite and the
// fuzz test take their devices from this list.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "devices/virtio_abi.h"
#include "devices/virtio_balloon.h"
#include "devices/virtio_blk.h"
#include "devices/virtio_console.h"
#include "devices/virtio_net.h"
#include "devices/virtio_rng.h"
#include "devices/virtio_vsock.h"
#include "support/fake_devices.h"
#include "support/fake_vsock_host.h"
#include "support/fake_wire.h"
#include "support/threaded_device.h"
#include "support/virtio_driver.h"

namespace fvmm::testing {

struct VirtioKind {
  const char* name;
  std::function<std::unique_ptr<devices::VirtioDevice>(devices::OutputSink&)> make;
  unsigned queue;              // takes a request of one buffer, at once and always
  std::uint16_t buffer_flags;  // device-writable or not
  bool threaded = false;       // serves on a thread of its own: two of them differ in timing
  bool keeps_own = false;      // of another VM's state it takes all but what makes it itself (a MAC address)
  std::function<void()> host_input = [] {};  // what a fuzzed device's host may do meanwhile
};

/// A raw disk of zeros that nobody else sees.
inline std::unique_ptr<devices::VirtioBlk> blk_over_memory(
    std::uint64_t bytes, std::unique_ptr<disk::FileIo> io = disk::make_ring_io().value()) {
  static devices::OutputGate open_gate;
  disk::RawImage image{.file = UniqueFd(::memfd_create("disk", MFD_CLOEXEC)), .bytes = bytes};
  FVMM_CHECK(::ftruncate(image.file.get(), static_cast<off_t>(bytes)) == 0, "a memfd of a test");
  return std::make_unique<devices::VirtioBlk>(devices::VirtioBlkSetup{
      .stack = disk::Stack::raw(std::move(image), true), .io = std::move(io), .gate = open_gate, .id = "fvmm-test"});
}

/// A network that nobody else is on.
inline std::unique_ptr<devices::VirtioNet> net_over_a_wire(std::shared_ptr<Wire> wire = std::make_shared<Wire>()) {
  static devices::OutputGate open_gate;
  return std::make_unique<devices::VirtioNet>(
      devices::VirtioNetSetup{.backend = std::make_unique<WireBackend>(std::move(wire), true),
                              .gate = open_gate,
                              .mac = {2, 0x11, 0x22, 0x33, 0x44, 0x55}});
}

/// A host of programs that only the test knows.
inline std::unique_ptr<devices::VirtioVsock> vsock_over_pairs(
    std::shared_ptr<Programs> programs = std::make_shared<Programs>()) {
  static devices::OutputGate open_gate;
  return std::make_unique<devices::VirtioVsock>(devices::VirtioVsockSetup{
      .hub = {.guest_cid = 42, .host = std::make_unique<FakeVsockHost>(std::move(programs))}, .gate = open_gate});
}

inline const std::vector<VirtioKind>& virtio_kinds() {
  static const std::vector<VirtioKind> all{
      {.name = "rng",
       .make = [](devices::OutputSink&) { return std::make_unique<devices::VirtioRng>(); },
       .queue = 0,
       .buffer_flags = devices::virtio::kDescriptorWrite},
      {.name = "console",
       .make = [](devices::OutputSink& sink) { return std::make_unique<devices::VirtioConsole>(sink); },
       .queue = 1,
       .buffer_flags = 0},
      {.name = "balloon",
       .make = [](devices::OutputSink&) { return std::make_unique<devices::VirtioBalloon>(); },
       .queue = 0,
       .buffer_flags = 0},
      {.name = "blk",
       .make = [](devices::OutputSink&) { return blk_over_memory(kMiB); },
       .queue = 0,
       .buffer_flags = 0,  // without room for a status: answered with nothing
       .threaded = true},
      {.name = "net",
       .make = [](devices::OutputSink&) { return net_over_a_wire(); },
       .queue = 1,
       .buffer_flags = 0,
       .threaded = true,
       .keeps_own = true},
      {.name = "vsock",
       .make = [](devices::OutputSink&) { return vsock_over_pairs(); },
       .queue = 1,
       .buffer_flags = 0,
       .threaded = true},
      {.name = "threaded",
       .make = [](devices::OutputSink&) { return std::make_unique<ThreadedDevice>(); },
       .queue = 0,
       .buffer_flags = devices::virtio::kDescriptorWrite,
       .threaded = true},
  };
  return all;
}

/// One device behind its transport, as a machine has it.
struct VirtioSpecimen {
  VirtioSpecimen(const VirtioKind& kind, memory::GuestMemory& memory)
      : device("virtio0", {.memory = memory, .line = line}, kind.make(sink)) {}
  FakeIrqLine line;
  FakeSink sink;
  devices::VirtioMmio device;
};

}  // namespace fvmm::testing
