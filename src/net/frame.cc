#include "net/frame.h"

#include <google/protobuf/message_lite.h>
#include <xxhash.h>

#include <bit>
#include <cstring>
#include <memory>

#include "base/check.h"

namespace fvmm::net {
namespace {

static_assert(std::endian::native == std::endian::little, "fields are copied as they lie in memory");

constexpr std::array kMagic = {std::byte{'F'}, std::byte{'V'}, std::byte{'M'}, std::byte{'1'}};

struct Limits {
  const char* name;
  std::uint32_t entries_max;
  std::uint32_t payload_bytes_max;
};

/// What a frame of this type may carry; null for a type nobody knows.
const Limits* limits_of(FrameType type) {
  static constexpr Limits kHello{"hello", 0, kHelloBytesMax};
  static constexpr Limits kControl{"control", 0, kControlBytesMax};
  static constexpr Limits kPages{"pages", kTableEntriesMax, kPagePayloadBytesMax};
  static constexpr Limits kEnd{"end", 0, 0};
  static constexpr Limits kSync{"sync", 0, 0};
  switch (type) {
    case FrameType::kHello:
      return &kHello;
    case FrameType::kControl:
      return &kControl;
    case FrameType::kPages:
      return &kPages;
    case FrameType::kEnd:
      return &kEnd;
    case FrameType::kSync:
      return &kSync;
  }
  return nullptr;
}

template <class Field>
Field load(std::span<const std::byte, kFrameHeaderBytes> in, std::size_t offset) {
  Field value{};
  std::memcpy(&value, in.data() + offset, sizeof value);
  return value;
}

template <class Field>
void store(std::span<std::byte, kFrameHeaderBytes> out, std::size_t offset, Field value) {
  std::memcpy(out.data() + offset, &value, sizeof value);
}

// Offsets of the fields; the checksum covers everything before it.
constexpr std::size_t kTypeAt = 4;
constexpr std::size_t kFlagsAt = 5;
constexpr std::size_t kVersionAt = 6;
constexpr std::size_t kEntriesAt = 8;
constexpr std::size_t kPayloadAt = 12;
constexpr std::size_t kSequenceAt = 16;
constexpr std::size_t kReservedAt = 24;
constexpr std::size_t kChecksumAt = 28;

Error corrupt(std::string why) {
  return {Errc::kDataLoss, "frame header: " + std::move(why)};
}

std::string over(const char* name, const char* what, std::uint64_t value, std::uint64_t max) {
  return std::string(name) + " frame of " + std::to_string(value) + " " + what + ", at most " + std::to_string(max);
}

/// Checks in the order in which a field can be believed: magic, version (another version may lay out the rest
/// differently), checksum, and only then the values.
Status check_envelope(std::span<const std::byte, kFrameHeaderBytes> in) {
  if (std::memcmp(in.data(), kMagic.data(), kMagic.size()) != 0) {
    return corrupt("wrong magic; the other side is not an fvmmd, or the stream lost its place");
  }
  const auto version = load<std::uint16_t>(in, kVersionAt);
  if (version != kFrameVersion) {
    return Error(Errc::kFailedPrecondition, "frame header: peer speaks version " + std::to_string(version) +
                                                ", this fvmmd version " + std::to_string(kFrameVersion));
  }
  if (load<std::uint32_t>(in, kChecksumAt) != XXH32(in.data(), kChecksumAt, 0)) return corrupt("wrong checksum");
  if (load<std::uint8_t>(in, kFlagsAt) != 0) return corrupt("unknown flags");
  if (load<std::uint32_t>(in, kReservedAt) != 0) return corrupt("reserved field is not zero");
  return {};
}

Error oversized(FrameType type, std::uint64_t bytes) {
  const Limits& limits = *limits_of(type);
  return {Errc::kResourceExhausted, over(limits.name, "bytes", bytes, limits.payload_bytes_max)};
}

}  // namespace

void encode(const FrameHeader& header, std::span<std::byte, kFrameHeaderBytes> out) {
  std::memcpy(out.data(), kMagic.data(), kMagic.size());
  store(out, kTypeAt, static_cast<std::uint8_t>(header.type));
  store(out, kFlagsAt, std::uint8_t{0});
  store(out, kVersionAt, kFrameVersion);
  store(out, kEntriesAt, header.entries);
  store(out, kPayloadAt, header.payload_bytes);
  store(out, kSequenceAt, header.sequence);
  store(out, kReservedAt, std::uint32_t{0});
  store(out, kChecksumAt, static_cast<std::uint32_t>(XXH32(out.data(), kChecksumAt, 0)));
}

Result<FrameHeader> decode(std::span<const std::byte, kFrameHeaderBytes> in) {
  FVMM_TRY(check_envelope(in));
  const auto type = load<std::uint8_t>(in, kTypeAt);
  const FrameHeader header{.type = static_cast<FrameType>(type),
                           .entries = load<std::uint32_t>(in, kEntriesAt),
                           .payload_bytes = load<std::uint32_t>(in, kPayloadAt),
                           .sequence = load<std::uint64_t>(in, kSequenceAt)};
  const Limits* limits = limits_of(header.type);
  if (limits == nullptr) return corrupt("unknown type " + std::to_string(type));
  if (header.entries > limits->entries_max) {
    return corrupt(over(limits->name, "table entries", header.entries, limits->entries_max));
  }
  if (header.payload_bytes > limits->payload_bytes_max) {
    return corrupt(over(limits->name, "payload bytes", header.payload_bytes, limits->payload_bytes_max));
  }
  return header;
}

Status send_message(Stream& stream, FrameType type, const google::protobuf::MessageLite& message,
                    const Deadline& deadline) {
  FVMM_CHECK(type == FrameType::kHello || type == FrameType::kControl, "only hello and control frames carry a message");
  const std::size_t bytes = message.ByteSizeLong();
  if (bytes > limits_of(type)->payload_bytes_max) return oversized(type, bytes);

  const auto frame = std::make_unique_for_overwrite<std::byte[]>(kFrameHeaderBytes + bytes);
  encode({.type = type, .payload_bytes = static_cast<std::uint32_t>(bytes)},
         std::span<std::byte, kFrameHeaderBytes>(frame.get(), kFrameHeaderBytes));
  if (!message.SerializeToArray(frame.get() + kFrameHeaderBytes, static_cast<int>(bytes))) {
    return Error(Errc::kInternal, "serialize " + message.GetTypeName());
  }
  return stream.send(std::span<const std::byte>(frame.get(), kFrameHeaderBytes + bytes), deadline);
}

Status receive_message(Stream& stream, FrameType type, google::protobuf::MessageLite& message,
                       const Deadline& deadline) {
  FVMM_CHECK(type == FrameType::kHello || type == FrameType::kControl, "only hello and control frames carry a message");
  const char* wanted = limits_of(type)->name;
  std::array<std::byte, kFrameHeaderBytes> bytes{};
  FVMM_TRY(stream.receive(bytes, deadline), wanted);
  const FrameHeader header = FVMM_TRY(decode(bytes), wanted);
  if (header.type != type) {
    return Error(Errc::kDataLoss, std::string("expected a ") + wanted + " frame, got " + limits_of(header.type)->name);
  }
  if (header.sequence != 0) return Error(Errc::kDataLoss, std::string(wanted) + " frame with a sequence number");

  const auto payload = std::make_unique_for_overwrite<std::byte[]>(header.payload_bytes);
  FVMM_TRY(stream.receive(std::span(payload.get(), header.payload_bytes), deadline), wanted);
  if (!message.ParseFromArray(payload.get(), static_cast<int>(header.payload_bytes))) {
    return Error(Errc::kDataLoss, std::string(wanted) + " frame of " + std::to_string(header.payload_bytes) +
                                      " bytes is not a valid " + message.GetTypeName());
  }
  return {};
}

}  // namespace fvmm::net
