// Frames on a peer connection: fixed little-endian header, table, payload. docs/wire-protocol.md, version 1.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "net/stream.h"

namespace google::protobuf {
class MessageLite;
}

namespace fvmm::net {

enum class FrameType : std::uint8_t {
  kHello = 1,    // payload: PeerHello; always the first frame, no table
  kControl = 2,  // payload: PeerMessage, no table
  kPages = 3,    // table: page runs; payload: the pages of the raw runs, in order
  kEnd = 4,      // no more page frames on this connection; nothing follows
  kSync = 5,     // answered with the same frame once everything before it is where it belongs
};

inline constexpr std::uint16_t kFrameVersion = 1;
inline constexpr std::uint32_t kFrameHeaderBytes = 32;
inline constexpr std::uint32_t kTableEntryBytes = 16;
inline constexpr std::uint32_t kTableEntriesMax = 4096;
inline constexpr std::uint32_t kHelloBytesMax = 64 * 1024;
inline constexpr std::uint32_t kControlBytesMax = 4 * 1024 * 1024;
inline constexpr std::uint32_t kPagePayloadBytesMax = 1024 * 1024;

/// Layout (little endian): u32 magic "FVM1", u8 type, u8 flags (0), u16 version (1), u32 entries, u32 payload bytes,
/// u64 sequence (of this connection, from 0), u32 reserved (0), u32 XXH32 (seed 0) of the 28 bytes before it.
/// Only page, sync and end frames are numbered; hello and control frames carry sequence 0, since they may be sent by
/// one process and the rest of the connection by another.
struct FrameHeader {
  FrameType type{};
  std::uint32_t entries = 0;  // table entries of kTableEntryBytes each
  std::uint32_t payload_bytes = 0;
  std::uint64_t sequence = 0;
};

/// Writes any header as it is, also one that decode() refuses: limits are the receiver's to enforce.
void encode(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out);
/// kDataLoss for a wrong magic, checksum, type, flag or a length over the type's limit; kFailedPrecondition for another
/// version (names both). Nothing may be allocated from a header before this has passed.
Result<FrameHeader> decode(std::span<const std::byte, kFrameHeaderBytes> in);

/// Sends one protobuf message as a frame (kHello or kControl). kResourceExhausted for a message over the type's limit;
/// then nothing was sent and the stream is as good as before.
Status send_message(Stream& stream, FrameType type, const google::protobuf::MessageLite& message,
                    const Deadline& deadline);
/// Receives one frame of exactly that type and parses it. Reads not a byte more than the frame; allocates only what a
/// checked header announces. kDataLoss for another type, a numbered frame, or bytes that do not parse; the stream has
/// then lost its place, and `message` is unspecified.
Status receive_message(Stream& stream, FrameType type, google::protobuf::MessageLite& message,
                       const Deadline& deadline);

}  // namespace fvmm::net
