// What a configuration may ask for in disks, and where a VM with disks may go. Form only: nothing is opened here.
#pragma once

#include "base/result.h"
#include "disk/open.h"
#include "proto/config.pb.h"

namespace fvmm::vmm {

inline constexpr std::size_t kDiskIdBytesMax = 20;  // what VIRTIO_BLK_T_GET_ID has room for

/// kInvalidArgument with the fix: a path that is not absolute, a layer that is read-only, one file for two purposes, an
/// id that cannot be or is there twice.
Status check_disks(const v1::VmConfig& config);
/// Before a migration. kFailedPrecondition names the disk that the destination could not reach.
Status check_disks_travel(const v1::VmConfig& config);
/// Before a template is made of a VM: what it writes to can be cut with its memory. kFailedPrecondition names the first
/// disk that is raw.
Status check_disks_cut(const v1::VmConfig& config);
/// Before a replica is made of a VM: its memory would be of another instant than what its disks hold.
/// kFailedPrecondition names the first disk that is written to.
Status check_disks_readonly(const v1::VmConfig& config);

[[nodiscard]] bool is_written(const v1::DiskConfig& disk);
[[nodiscard]] disk::DiskFiles files_of(const v1::DiskConfig& disk);

}  // namespace fvmm::vmm
