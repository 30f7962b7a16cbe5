#include "devices/vsock_packet.h"

#include "devices/state_codec.h"

namespace fvmm::devices {

VsockHeader decode_vsock(const VsockHeaderBytes& bytes) {
  StateReader reader(bytes);
  VsockHeader header;
  header.src_cid = reader.get<std::uint64_t>();
  header.dst_cid = reader.get<std::uint64_t>();
  header.src_port = reader.get<std::uint32_t>();
  header.dst_port = reader.get<std::uint32_t>();
  header.len = reader.get<std::uint32_t>();
  header.type = reader.get<std::uint16_t>();
  header.op = static_cast<VsockOp>(reader.get<std::uint16_t>());
  header.flags = reader.get<std::uint32_t>();
  header.buf_alloc = reader.get<std::uint32_t>();
  header.fwd_cnt = reader.get<std::uint32_t>();
  return header;
}

VsockHeaderBytes encode_vsock(const VsockHeader& header) {
  VsockHeaderBytes bytes{};
  auto at = bytes.begin();
  const auto put = [&at](auto value) {
    for (std::size_t i = 0; i < sizeof value; ++i) *at++ = static_cast<std::byte>((value >> (8 * i)) & 0xff);
  };
  put(header.src_cid);
  put(header.dst_cid);
  put(header.src_port);
  put(header.dst_port);
  put(header.len);
  put(header.type);
  put(static_cast<std::uint16_t>(header.op));
  put(header.flags);
  put(header.buf_alloc);
  put(header.fwd_cnt);
  return bytes;
}

}  // namespace fvmm::devices
