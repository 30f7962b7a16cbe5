// Every virtio device, with one request that it answers. A new device adds itself here: the conformance suite and the
// fuzz test take their devices from this list.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "devices/virtio_abi.h"
#include "devices/virtio_console.h"
#include "devices/virtio_rng.h"
#include "support/fake_devices.h"
#include "support/threaded_device.h"
#include "support/virtio_driver.h"

namespace fvmm::testing {

struct VirtioKind {
  const char* name;
  std::function<std::unique_ptr<devices::VirtioDevice>(devices::OutputSink&)> make;
  unsigned queue;              // takes a request of one buffer, at once and always
  std::uint16_t buffer_flags;  // device-writable or not
};

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
      {.name = "threaded",
       .make = [](devices::OutputSink&) { return std::make_unique<ThreadedDevice>(); },
       .queue = 0,
       .buffer_flags = devices::virtio::kDescriptorWrite},
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
