// The files of a VM's disks, looked at by fvmmd before a worker opens them: so that an error names the file, the fix,
// and who is in the way.
#pragma once

#include <span>

#include "base/result.h"
#include "daemon/registry.h"
#include "proto/config.pb.h"

namespace fvmm::daemon {

/// When a VM is made: what is there can be opened, and no two disks share a file that one writes to. A layer that does
/// not exist yet is fine. Errors as disk::open_disk(); kInvalidArgument for two disks on one file.
Status check_disk_files(const v1::VmConfig& config);

/// When a VM is started: nobody else is in the way of its disks. kFailedPrecondition names the VM of this host, or the
/// process. A worker locks them all the same.
Status check_disks_free(const v1::VmConfig& config, std::span<const VmView> vms);

/// Layers that do not exist yet. Errors as disk::make_layer().
Status make_disk_layers(const v1::VmConfig& config);

}  // namespace fvmm::daemon
