#include "migration/refusal.h"

#include <fmt/format.h>

namespace fvmm::migration {

v1::PeerMessage to_message(v1::PeerKind kind, const Error& error) {
  v1::PeerMessage message;
  message.set_kind(kind);
  message.set_code(static_cast<std::uint32_t>(error.code() == Errc::kIo ? Errc::kInternal : error.code()));
  message.set_reason(error.message());
  return message;
}

Error refusal(const v1::PeerMessage& message, const std::string& peer) {
  switch (message.kind()) {
    case v1::PEER_REJECTED:
    case v1::PEER_REFUSED_DURABLY:
    case v1::PEER_FENCED: {
      const bool known = message.code() >= 1 && message.code() <= static_cast<std::uint32_t>(Errc::kIo);
      return {known ? static_cast<Errc>(message.code()) : Errc::kFailedPrecondition,
              fmt::format("peer {}: {}", peer, message.reason())};
    }
    default:
      return {Errc::kDataLoss,
              fmt::format("peer {}: message {} out of place", peer, v1::PeerKind_Name(message.kind()))};
  }
}

}  // namespace fvmm::migration
