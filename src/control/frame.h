// Frames of the control socket: u32 little-endian length, then a serialized RpcRequest or RpcResponse.
// docs/control-protocol.md, version 1. Pure functions, any thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace google::protobuf {
class MessageLite;
}

namespace fvmm::control {

inline constexpr std::size_t kFrameHeaderBytes = 4;
inline constexpr std::size_t kErrorTextBytesMax = 16 * 1024;  // longer error texts are cut
inline constexpr std::uint64_t kConnectionCall = 0;           // call number of an error about the connection itself

using FrameHeader = std::array<unsigned char, kFrameHeaderBytes>;

std::uint32_t decode_length(const FrameHeader& header);
/// Header and message. Precondition (checked): the message fits kRpcFrameBytesMax.
std::string encode_frame(const google::protobuf::MessageLite& message);
/// A whole error answer, the last one of its call. kIo goes out as kInternal.
std::string encode_error(std::uint64_t call, const Error& error);
/// The good, last answer of a call; an answer past kRpcFrameBytesMax becomes a kResourceExhausted error that ends the
/// call.
std::string encode_answer(std::uint64_t call, std::string&& message);

/// google.rpc.Code of an Errc.
std::uint32_t to_wire(Errc code);
/// The error a server sent; a code this version does not know becomes kUnknown.
Error from_wire(std::uint32_t code, std::string text);

/// The text with bytes that are not UTF-8 replaced by '?': protobuf strings and JSON must be UTF-8, file names need
/// not.
std::string to_utf8(std::string_view text);

}  // namespace fvmm::control
