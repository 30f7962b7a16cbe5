// The disks of a template, and those of its clones: each clone writes to a layer of its own over what the template
// holds.
#pragma once

#include <filesystem>
#include <string>

#include "base/result.h"
#include "memory/template_info.h"
#include "proto/control.pb.h"

namespace fvmm::daemon {

/// Whether the template holds all that its VM wrote to. One that does not (what a host keeps of a VM that has left) is
/// of memory alone, which no disk fits any more.
bool holds_disks(const memory::TemplateInfo& from);

/// Before a template is made: what the VM writes to can be cut, and shared with the store by hard links.
/// kFailedPrecondition names a disk that is raw, or on another filesystem.
Status check_disks_shareable(const v1::VmConfig& config, const std::filesystem::path& store);

/// "%n" stands for the clone's number.
std::string numbered(std::string text, unsigned number);

/// Where the disks of clone `number` lie that its template holds: as the request says, "%n" being its number, else
/// "disk-N" in the VM's directory. kInvalidArgument for another number of disks, or more than a place for each.
Status place_disks(v1::VmConfig& config, const memory::TemplateInfo& from, const v1::CloneRequest& request,
                   unsigned number, const std::filesystem::path& vm_directory);

/// Whether the VM's disks are as the template has them, or not there yet: then it may start from the template. Errors
/// of disk::Layer.
Result<bool> are_untouched(const v1::VmConfig& config, const memory::TemplateInfo& from);

/// Before a VM starts from the template: its disks are made, empty over what the template holds. One that is there must
/// be just that; kFailedPrecondition when it was written to since, or is something else.
Status make_clone_disks(const v1::VmConfig& config, const memory::TemplateInfo& from);

/// Reads all of the template's layers. kDataLoss names the one that is not what was sealed.
Status verify_disks(const memory::TemplateInfo& info);

}  // namespace fvmm::daemon
