// fvmmctl vm balloon, and what `vm show` says of a balloon.
#pragma once

#include <string>
#include <vector>

#include "cli/commands.h"
#include "proto/control.pb.h"

namespace fvmm::cli {

void add_balloon(CLI::App& vm, Chosen& chosen);
/// Rows of `vm show`; none without a balloon.
std::vector<std::vector<std::string>> balloon_rows(const v1::VmInfo& vm);

}  // namespace fvmm::cli
