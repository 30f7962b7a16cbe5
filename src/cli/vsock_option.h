// What people write behind --vsock.
#pragma once

#include <string>

#include "base/result.h"
#include "proto/control.pb.h"

namespace fvmm::cli {

/// [path=SOCKET][,cid=N]; nothing is fine. kInvalidArgument names the word and what there is.
Result<v1::VsockConfig> parse_vsock(const std::string& text);
/// A row of `vm show`.
std::string vsock_text(const v1::VsockInfo& vsock);

}  // namespace fvmm::cli
