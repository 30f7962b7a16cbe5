#include "control/frame.h"

#include <fmt/format.h>

#include "base/check.h"
#include "control/server.h"
#include "proto/rpc.pb.h"

namespace fvmm::control {
namespace {

/// Bytes of the UTF-8 sequence at the start of `text`, 0 when it is not one (RFC 3629: no overlong forms, no
/// surrogates).
std::size_t sequence_bytes(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const auto follows = [&](std::size_t i) { return i < text.size() && (byte(i) & 0xC0) == 0x80; };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    if (!follows(1) || !follows(2)) return 0;
    if (first == 0xE0 && byte(1) < 0xA0) return 0;
    if (first == 0xED && byte(1) >= 0xA0) return 0;
    return 3;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    if (!follows(1) || !follows(2) || !follows(3)) return 0;
    if (first == 0xF0 && byte(1) < 0x90) return 0;
    if (first == 0xF4 && byte(1) >= 0x90) return 0;
    return 4;
  }
  return 0;
}

}  // namespace

std::uint32_t decode_length(const FrameHeader& header) {
  return static_cast<std::uint32_t>(header[0]) | static_cast<std::uint32_t>(header[1]) << 8 |
         static_cast<std::uint32_t>(header[2]) << 16 | static_cast<std::uint32_t>(header[3]) << 24;
}

std::string encode_frame(const google::protobuf::MessageLite& message) {
  const std::size_t length = message.ByteSizeLong();
  FVMM_CHECK(length <= kRpcFrameBytesMax, "a frame is larger than the receiver accepts");
  std::string frame;
  frame.reserve(kFrameHeaderBytes + length);
  for (unsigned shift = 0; shift < 32; shift += 8) frame.push_back(static_cast<char>((length >> shift) & 0xFF));
  FVMM_CHECK(message.AppendPartialToString(&frame), "serializing a frame");
  return frame;
}

std::string encode_error(std::uint64_t call, const Error& error) {
  fvmm::v1::RpcResponse response;
  response.set_call(call);
  response.set_code(to_wire(error.code()));
  response.set_error(to_utf8(std::string_view(error.message()).substr(0, kErrorTextBytesMax)));
  response.set_end(true);
  return encode_frame(response);
}

std::string encode_answer(std::uint64_t call, std::string&& message) {
  fvmm::v1::RpcResponse response;
  response.set_call(call);
  response.set_end(true);
  response.set_message(std::move(message));
  const std::size_t length = response.ByteSizeLong();
  if (length <= kRpcFrameBytesMax) return encode_frame(response);
  return encode_error(call,
                      Error(Errc::kResourceExhausted,
                            fmt::format("the answer has {} bytes, at most {} fit a frame", length, kRpcFrameBytesMax)));
}

std::uint32_t to_wire(Errc code) {
  return static_cast<std::uint32_t>(code == Errc::kIo ? Errc::kInternal : code);
}

Error from_wire(std::uint32_t code, std::string text) {
  const bool known =
      code >= static_cast<std::uint32_t>(Errc::kCancelled) && code <= static_cast<std::uint32_t>(Errc::kDataLoss);
  return Error(known ? static_cast<Errc>(code) : Errc::kUnknown, std::move(text));
}

std::string to_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const std::size_t bytes = sequence_bytes(text);
    if (bytes == 0) {
      out.push_back('?');
      text.remove_prefix(1);
    } else {
      out.append(text.substr(0, bytes));
      text.remove_prefix(bytes);
    }
  }
  return out;
}

}  // namespace fvmm::control
