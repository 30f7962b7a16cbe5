#pragma once

#include <cstdint>

namespace fvmm::daemon {

/// PeerHello.version. Peers of different versions do not talk: the listener refuses, naming both.
inline constexpr std::uint32_t kPeerVersion = 1;

}  // namespace fvmm::daemon
