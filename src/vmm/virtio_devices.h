// From a VM's configuration to its virtio devices. A new device adds its case here.
#pragma once

#include <memory>

#include "base/result.h"
#include "devices/device.h"
#include "devices/output_gate.h"
#include "devices/virtio_device.h"
#include "devices/vsock_host.h"
#include "proto/config.pb.h"

namespace fvmm::vmm {

/// What a VM's configuration may ask for, before anything is made. kInvalidArgument with the fix: too many devices, one
/// of no known kind (made by a newer build), two of a kind of which there is one.
Status check_virtio(const v1::VmConfig& config);

/// What the host side of devices needs; each outlives the device.
struct VirtioBackends {
  devices::OutputSink* console = nullptr;               // behind the output gate
  std::unique_ptr<devices::VsockHost> vsock = nullptr;  // the device's, from then on
  devices::OutputGate* gate = nullptr;                  // for those that are not behind it yet
};

/// `config` has passed check_virtio(). kFailedPrecondition: a vsock device without its backend.
Result<std::unique_ptr<devices::VirtioDevice>> make_virtio(const v1::VirtioDevice& config, VirtioBackends backends);

}  // namespace fvmm::vmm
