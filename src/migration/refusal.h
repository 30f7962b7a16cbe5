// Errors that travel between peers: REJECTED and REFUSED_DURABLY with the code and the reason of an Error.
#pragma once

#include <string>

#include "base/result.h"
#include "proto/peer.pb.h"

namespace fvmm::migration {

/// The message for an error. kIo has no meaning on another host and becomes kInternal.
v1::PeerMessage to_message(v1::PeerKind kind, const Error& error);

/// What a peer's message means where another was due: its refusal with the reason, or kDataLoss for a message out of
/// place. Names the peer.
Error refusal(const v1::PeerMessage& message, const std::string& peer);

}  // namespace fvmm::migration
