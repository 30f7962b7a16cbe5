#include "net/stream.h"

namespace fvmm::net {

Status Stream::send(std::span<const iovec> parts, const Deadline& deadline) {
  FVMM_TRY(start_send(parts, deadline));
  return finish_send(deadline);
}

Status Stream::send(std::span<const std::byte> bytes, const Deadline& deadline) {
  // iovec is not const-correct: sendmsg(2) only reads.
  const iovec part{.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
  return send(std::span(&part, 1), deadline);
}

Status Stream::receive(std::span<std::byte> bytes, const Deadline& deadline) {
  const iovec part{.iov_base = bytes.data(), .iov_len = bytes.size()};
  return receive(std::span(&part, 1), deadline);
}

}  // namespace fvmm::net
