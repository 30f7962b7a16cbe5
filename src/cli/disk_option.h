// --disk path=FILE[,base=FILE][,readonly][,shared][,id=NAME]
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "proto/config.pb.h"

namespace fvmm::cli {

/// Paths are made absolute; one with a comma cannot be named. kInvalidArgument says what is missing or not known.
Result<v1::DiskConfig> parse_disk(std::string_view text);

/// As `vm show` prints it: "/srv/web1.layer over /srv/debian.img, shared".
std::string disk_text(const v1::DiskConfig& disk);

}  // namespace fvmm::cli
