// What people write behind --net.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "proto/control.pb.h"

namespace fvmm::cli {

/// tap=NAME|unix=PATH[,mac=02:..][,queues=1]. kInvalidArgument names the word and what there is.
Result<v1::NetConfig> parse_net(const std::string& text);
/// ID:tap=NAME|unix=PATH, where a network is connected on another host.
Result<v1::NetPlace> parse_net_place(const std::string& text);
/// A row of `vm show`. `live`: null while the VM does not run.
std::string net_text(const v1::NetConfig& net, const v1::NetInfo* live);

}  // namespace fvmm::cli
