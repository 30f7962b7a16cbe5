// A packet of virtio-vsock (virtio 1.2, section 5.10.6): a header of 44 bytes, little endian, and perhaps data.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace fvmm::devices {

inline constexpr std::size_t kVsockHeaderBytes = 44;
inline constexpr std::uint64_t kVsockHostCid = 2;
inline constexpr std::uint16_t kVsockStream = 1;  // a type; the only one that is offered

enum class VsockOp : std::uint16_t {
  kInvalid = 0,
  kRequest = 1,
  kResponse = 2,
  kRst = 3,
  kShutdown = 4,
  kRw = 5,
  kCreditUpdate = 6,
  kCreditRequest = 7,
};

// Flags of SHUTDOWN: the sender of the packet will not receive any more, will not send any more.
inline constexpr std::uint32_t kVsockNoReceive = 1;
inline constexpr std::uint32_t kVsockNoSend = 2;
inline constexpr std::uint32_t kVsockNeither = kVsockNoReceive | kVsockNoSend;

struct VsockHeader {
  std::uint64_t src_cid = 0;
  std::uint64_t dst_cid = 0;
  std::uint32_t src_port = 0;
  std::uint32_t dst_port = 0;
  std::uint32_t len = 0;  // of the data
  std::uint16_t type = kVsockStream;
  VsockOp op = VsockOp::kInvalid;  // of a guest's packet any value
  std::uint32_t flags = 0;
  std::uint32_t buf_alloc = 0;  // the sender's room for this connection, and
  std::uint32_t fwd_cnt = 0;    // how much of what it got it has passed on: free-running, modulo 2^32
  bool operator==(const VsockHeader&) const = default;
};
using VsockHeaderBytes = std::array<std::byte, kVsockHeaderBytes>;

VsockHeader decode_vsock(const VsockHeaderBytes& bytes);
VsockHeaderBytes encode_vsock(const VsockHeader& header);

struct VsockPacket {
  VsockHeader header;
  std::vector<std::byte> data;
};

/// What names a connection; the host's address is always kVsockHostCid, the guest's its own.
struct VsockPorts {
  std::uint32_t host = 0;
  std::uint32_t guest = 0;
  bool operator==(const VsockPorts&) const = default;
  bool operator<(const VsockPorts& other) const { return host != other.host ? host < other.host : guest < other.guest; }
};

}  // namespace fvmm::devices
