#include "net/frame.h"

#include <google/protobuf/wrappers.pb.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "base/file.h"
#include "net/pipe_stream.h"

namespace fvmm::net {
namespace {

using google::protobuf::BytesValue;
using std::chrono::milliseconds;
using std::chrono::seconds;
using Bytes = std::array<std::byte, kFrameHeaderBytes>;

Deadline soon() {
  return Deadline::after(seconds(20));
}

Bytes encoded(const FrameHeader& header) {
  Bytes bytes{};
  encode(header, bytes);
  return bytes;
}

/// Makes the checksum right again after a change.
void seal(Bytes& bytes) {
  const std::uint32_t sum = XXH32(bytes.data(), 28, 0);
  std::memcpy(bytes.data() + 28, &sum, sizeof sum);
}

BytesValue message_of(std::size_t bytes) {
  BytesValue message;
  message.set_value(std::string(bytes, 'x'));
  return message;
}

/// A BytesValue whose serialized form has exactly this many bytes (tag and length of a long value take 4).
BytesValue message_serialized_to(std::size_t bytes) {
  for (std::size_t overhead = 2; overhead <= 6; ++overhead) {
    auto message = message_of(bytes - overhead);
    if (message.ByteSizeLong() == bytes) return message;
  }
  ADD_FAILURE() << "no such message";
  return {};
}

TEST(Frame, EveryTypeSurvivesItsRoundTripAtItsLimits) {
  const FrameHeader headers[] = {
      {.type = FrameType::kHello, .payload_bytes = kHelloBytesMax},
      {.type = FrameType::kControl, .payload_bytes = kControlBytesMax},
      {.type = FrameType::kPages, .entries = kTableEntriesMax, .payload_bytes = kPagePayloadBytesMax, .sequence = 7},
      {.type = FrameType::kPages, .sequence = ~0ull},
      {.type = FrameType::kEnd, .sequence = 1ull << 40},
      {.type = FrameType::kSync, .sequence = 3},
  };
  for (const FrameHeader& header : headers) {
    const auto back = decode(encoded(header));
    ASSERT_TRUE(back.ok()) << back.error().message();
    EXPECT_EQ(back->type, header.type);
    EXPECT_EQ(back->entries, header.entries);
    EXPECT_EQ(back->payload_bytes, header.payload_bytes);
    EXPECT_EQ(back->sequence, header.sequence);
  }
}

TEST(Frame, OnePastEachLimitIsRefused) {
  const FrameHeader headers[] = {
      {.type = FrameType::kHello, .payload_bytes = kHelloBytesMax + 1},
      {.type = FrameType::kHello, .entries = 1},
      {.type = FrameType::kControl, .payload_bytes = kControlBytesMax + 1},
      {.type = FrameType::kControl, .entries = 1},
      {.type = FrameType::kPages, .entries = kTableEntriesMax + 1},
      {.type = FrameType::kPages, .payload_bytes = kPagePayloadBytesMax + 1},
      {.type = FrameType::kEnd, .entries = 1},
      {.type = FrameType::kEnd, .payload_bytes = 1},
      {.type = FrameType::kSync, .entries = 1},
      {.type = FrameType::kSync, .payload_bytes = 1},
      {.type = static_cast<FrameType>(0)},
      {.type = static_cast<FrameType>(6)},
  };
  for (const FrameHeader& header : headers) {
    const auto refused = decode(encoded(header));
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code(), Errc::kDataLoss);
  }
}

// The bytes on the wire are a promise to other versions: docs/wire-protocol.md shows the same example.
TEST(Frame, BytesOnTheWireAreThoseOfTheDocument) {
  const Bytes bytes =
      encoded({.type = FrameType::kPages, .entries = 0x0102, .payload_bytes = 0x1000, .sequence = 0x0a0b});
  const unsigned char expected[28] = {'F', 'V', 'M',  '1',  3, 0, 1, 0, 0x02, 0x01, 0, 0, 0, 0x10,
                                      0,   0,   0x0b, 0x0a, 0, 0, 0, 0, 0,    0,    0, 0, 0, 0};
  EXPECT_EQ(std::memcmp(bytes.data(), expected, sizeof expected), 0);
  std::uint32_t sum = 0;
  std::memcpy(&sum, bytes.data() + 28, sizeof sum);
  EXPECT_EQ(sum, XXH32(expected, sizeof expected, 0));
}

TEST(Frame, EverySingleFlippedBitIsNoticed) {
  const Bytes good = encoded({.type = FrameType::kPages, .entries = 3, .payload_bytes = 8192, .sequence = 5});
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    Bytes bad = good;
    bad[bit / 8] ^= static_cast<std::byte>(1 << (bit % 8));
    EXPECT_FALSE(decode(bad).ok()) << "bit " << bit;
  }
}

TEST(Frame, FlagsAndReservedFieldMustBeZeroEvenUnderARightChecksum) {
  for (const std::size_t at : {5ul, 24ul, 25ul, 26ul, 27ul}) {
    Bytes bytes = encoded({.type = FrameType::kEnd});
    bytes[at] = std::byte{1};
    seal(bytes);
    const auto refused = decode(bytes);
    ASSERT_FALSE(refused.ok()) << at;
    EXPECT_EQ(refused.error().code(), Errc::kDataLoss);
  }
}

TEST(Frame, AnotherVersionIsRefusedNamingBoth) {
  Bytes bytes = encoded({.type = FrameType::kHello});
  bytes[6] = std::byte{9};  // and the checksum may be of another kind there
  const auto refused = decode(bytes);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(refused.error().message().find("version 9"), std::string::npos);
  EXPECT_NE(refused.error().message().find("version 1"), std::string::npos);
}

TEST(Frame, AnotherProtocolIsRefusedByItsMagic) {
  Bytes bytes{};
  std::memcpy(bytes.data(), "GET / HTTP/1.1\r\nHost: example\r\n\r\n", bytes.size());
  const auto refused = decode(bytes);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kDataLoss);
  EXPECT_NE(refused.error().message().find("magic"), std::string::npos);
}

TEST(Message, SurvivesItsRoundTripAndLeavesTheNextByteUnread) {
  auto [a, b] = PipeStream::make();
  ASSERT_TRUE(send_message(*a, FrameType::kHello, message_of(1000), soon()).ok());
  ASSERT_TRUE(a->send(as_bytes("next"), soon()).ok());
  BytesValue in;
  ASSERT_TRUE(receive_message(*b, FrameType::kHello, in, soon()).ok());
  EXPECT_EQ(in.value(), std::string(1000, 'x'));
  std::array<std::byte, 4> next{};
  ASSERT_TRUE(b->receive(std::span(next), soon()).ok());
  EXPECT_EQ(std::memcmp(next.data(), "next", 4), 0);
}

TEST(Message, AnEmptyOneIsOnlyAHeader) {
  auto [a, b] = PipeStream::make();
  ASSERT_TRUE(send_message(*a, FrameType::kControl, BytesValue(), soon()).ok());
  EXPECT_EQ(a->sent_bytes(), kFrameHeaderBytes);
  BytesValue in = message_of(3);
  ASSERT_TRUE(receive_message(*b, FrameType::kControl, in, soon()).ok());
  EXPECT_EQ(in.value(), "");
}

TEST(Message, AtTheLimitPassesAndOnePastItIsNotSent) {
  const std::pair<FrameType, std::uint32_t> limits[] = {{FrameType::kHello, kHelloBytesMax},
                                                        {FrameType::kControl, kControlBytesMax}};
  for (const auto& [type, bytes_max] : limits) {
    auto [a, b] = PipeStream::make({}, {}, kControlBytesMax + kFrameHeaderBytes);
    const auto refused = send_message(*a, type, message_serialized_to(bytes_max + 1), soon());
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code(), Errc::kResourceExhausted);
    EXPECT_EQ(a->sent_bytes(), 0u);
    ASSERT_TRUE(send_message(*a, type, message_serialized_to(bytes_max), soon()).ok());  // the stream is still good
    BytesValue in;
    ASSERT_TRUE(receive_message(*b, type, in, soon()).ok());
    EXPECT_EQ(in.ByteSizeLong(), bytes_max);
  }
}

TEST(Message, AnotherTypeOfFrameIsRefusedNamingBoth) {
  auto [a, b] = PipeStream::make();
  ASSERT_TRUE(send_message(*a, FrameType::kControl, message_of(1), soon()).ok());
  BytesValue in;
  const auto refused = receive_message(*b, FrameType::kHello, in, soon());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kDataLoss);
  EXPECT_EQ(refused.error().message(), "expected a hello frame, got control");
}

TEST(Message, ANumberedOneIsRefused) {
  auto [a, b] = PipeStream::make();
  ASSERT_TRUE(a->send(std::span<const std::byte>(encoded({.type = FrameType::kControl, .sequence = 1})), soon()).ok());
  BytesValue in;
  EXPECT_EQ(receive_message(*b, FrameType::kControl, in, soon()).error().code(), Errc::kDataLoss);
}

TEST(Message, BytesThatAreNoMessageAreRefusedNamingIt) {
  auto [a, b] = PipeStream::make();
  ASSERT_TRUE(
      a->send(std::span<const std::byte>(encoded({.type = FrameType::kControl, .payload_bytes = 3})), soon()).ok());
  ASSERT_TRUE(a->send(as_bytes("\xff\xff\xff"), soon()).ok());
  BytesValue in;
  const auto refused = receive_message(*b, FrameType::kControl, in, soon());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kDataLoss);
  EXPECT_NE(refused.error().message().find("google.protobuf.BytesValue"), std::string::npos);
}

// Wherever the connection is cut, the receiver gets the message whole or a clean error.
TEST(Message, CutAtEveryByteIsAnErrorAndNeverHalfAMessage) {
  const auto message = message_of(100);
  const std::uint64_t whole = kFrameHeaderBytes + message.ByteSizeLong();
  for (std::uint64_t at = 0; at <= whole; ++at) {
    auto [a, b] = PipeStream::make({.cut_after_bytes = at});
    EXPECT_EQ(send_message(*a, FrameType::kHello, message, soon()).ok(), at == whole) << at;
    BytesValue in;
    const auto received = receive_message(*b, FrameType::kHello, in, soon());
    EXPECT_EQ(received.ok(), at == whole) << at;
    if (!received.ok()) {
      EXPECT_EQ(received.error().code(), Errc::kUnavailable) << at;
    }
  }
}

TEST(Message, AStalledOneEndsAtTheDeadline) {
  auto [a, b] = PipeStream::make({.stall_after_bytes = 40});
  ASSERT_TRUE(send_message(*a, FrameType::kHello, message_of(100), soon()).ok());
  BytesValue in;
  EXPECT_EQ(receive_message(*b, FrameType::kHello, in, Deadline::after(milliseconds(5))).error().code(),
            Errc::kDeadlineExceeded);
}

}  // namespace
}  // namespace fvmm::net
