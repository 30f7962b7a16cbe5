// From a VM's configuration to its network devices. Whoever starts the VM opens what they are connected to (fvmmd,
// which may have rights that the worker has not), and the worker gets descriptors.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/output_gate.h"
#include "devices/virtio_net.h"
#include "proto/config.pb.h"
#include "proto/control.pb.h"

namespace fvmm::vmm {

inline constexpr int kVmNetsMax = 8;

/// "net0" for the first of a configuration; how users, records and errors name it.
std::string net_name(int index);
/// What people wrote: "tap=web0".
std::string net_place(const v1::NetConfig& net);

/// kInvalidArgument with the fix: too many, no backend (or one of a newer build), a relative path, an address that is
/// no station's, the same tap or address twice in one VM.
Status check_nets(const v1::VmConfig& config);
/// Gives every network without an address one that is locally administered and follows from the VM's id.
void give_macs(v1::VmConfig& config);
/// The configuration with some networks connected elsewhere, as they will be on another host. kInvalidArgument for a
/// network that is not there, given twice, or with another address.
Result<v1::VmConfig> place_nets(v1::VmConfig config, const google::protobuf::RepeatedPtrField<v1::NetPlace>& places);
/// One descriptor for each network, in order. Errors name the network, and are those of open_tap() and
/// open_net_stream(). `config` has passed check_nets().
Result<std::vector<UniqueFd>> open_nets(const v1::VmConfig& config);
/// The devices over the descriptors of open_nets(). kFailedPrecondition when those are others.
Result<std::vector<std::unique_ptr<devices::VirtioNet>>> make_nets(const v1::VmConfig& config,
                                                                   std::vector<UniqueFd> descriptors,
                                                                   devices::OutputGate& gate);

}  // namespace fvmm::vmm
