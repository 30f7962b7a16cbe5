// Mutated frames, from a seed: whatever arrives, decode() and receive_message() answer with a value or a typed error,
// stay within the limits, and never read past the frame. FVMM_FUZZ_SEED and FVMM_FUZZ_ROUNDS choose another run.
#include <google/protobuf/wrappers.pb.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "net/frame.h"
#include "net/pipe_stream.h"

namespace fvmm::net {
namespace {

using google::protobuf::BytesValue;
using Random = std::mt19937_64;
using Bytes = std::array<std::byte, kFrameHeaderBytes>;

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): one thread
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
}

#ifdef FVMM_SANITIZED
constexpr std::uint64_t kSlower = 10;
#else
constexpr std::uint64_t kSlower = 1;
#endif

std::uint32_t interesting(Random& random, std::uint32_t limit) {
  switch (random() % 5) {
    case 0:
      return 0;
    case 1:
      return limit;
    case 2:
      return limit + 1;
    case 3:
      return static_cast<std::uint32_t>(random());
    default:
      return static_cast<std::uint32_t>(random() % (limit + 1ull));
  }
}

FrameHeader any_header(Random& random) {
  return {.type = static_cast<FrameType>(random() % 7),
          .entries = interesting(random, kTableEntriesMax),
          .payload_bytes = interesting(random, random() % 2 == 0 ? kPagePayloadBytesMax : kControlBytesMax),
          .sequence = random() % 3 == 0 ? random() : 0};
}

/// Flips bits, writes bytes, or replaces everything; then, half of the time, makes the checksum right.
void mutate(Bytes& bytes, Random& random) {
  const std::uint64_t kind = random() % 8;
  if (kind == 0) {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  } else if (kind > 2) {
    for (std::uint64_t n = 1 + random() % 3; n > 0; --n) {
      std::byte& byte = bytes[random() % bytes.size()];
      byte = random() % 2 == 0 ? static_cast<std::byte>(random()) : byte ^ static_cast<std::byte>(1 << (random() % 8));
    }
  }
  if (random() % 2 == 0) {
    const std::uint32_t sum = XXH32(bytes.data(), 28, 0);
    std::memcpy(bytes.data() + 28, &sum, sizeof sum);
  }
}

void expect_within_limits(const FrameHeader& header) {
  switch (header.type) {
    case FrameType::kHello:
      ASSERT_EQ(header.entries, 0u);
      ASSERT_LE(header.payload_bytes, kHelloBytesMax);
      return;
    case FrameType::kControl:
      ASSERT_EQ(header.entries, 0u);
      ASSERT_LE(header.payload_bytes, kControlBytesMax);
      return;
    case FrameType::kPages:
      ASSERT_LE(header.entries, kTableEntriesMax);
      ASSERT_LE(header.payload_bytes, kPagePayloadBytesMax);
      return;
    case FrameType::kEnd:
    case FrameType::kSync:
      ASSERT_EQ(header.entries, 0u);
      ASSERT_EQ(header.payload_bytes, 0u);
      return;
  }
  FAIL() << "unknown type accepted";
}

TEST(FrameFuzz, DecodeAcceptsOnlyWhatEncodesToTheSameBytes) {
  const std::uint64_t seed = from_environment("FVMM_FUZZ_SEED", 1);
  const std::uint64_t rounds = from_environment("FVMM_FUZZ_ROUNDS", 1'200'000 / kSlower);
  Random random(seed);
  std::uint64_t accepted = 0;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed << " round " << round);
    Bytes bytes{};
    encode(any_header(random), bytes);
    mutate(bytes, random);
    const auto header = decode(bytes);
    if (!header.ok()) {
      const Errc code = header.error().code();
      ASSERT_TRUE(code == Errc::kDataLoss || code == Errc::kFailedPrecondition) << header.error().message();
      continue;
    }
    ++accepted;
    ASSERT_NO_FATAL_FAILURE(expect_within_limits(*header));
    Bytes again{};
    encode(*header, again);
    ASSERT_EQ(again, bytes);
  }
  EXPECT_GT(accepted, rounds / 100);  // else the mutations tell nothing about accepted frames
}

/// A stream of mutated frames with random payloads; short, long and valid ones.
std::vector<std::byte> any_stream(Random& random) {
  BytesValue message;
  message.set_value(std::string(random() % 200, 'y'));
  const std::string text = message.SerializeAsString();
  Bytes header{};
  encode({.type = random() % 4 == 0 ? FrameType::kControl : FrameType::kHello,
          .payload_bytes = random() % 4 == 0 ? interesting(random, 4096) : static_cast<std::uint32_t>(text.size())},
         header);
  if (random() % 2 == 0) mutate(header, random);
  std::vector<std::byte> out(header.begin(), header.end());
  for (const char c : text) out.push_back(static_cast<std::byte>(c));
  for (std::uint64_t n = random() % 4; n > 0 && random() % 2 == 0; --n) {
    out[random() % out.size()] = static_cast<std::byte>(random());
  }
  if (random() % 8 == 0) out.resize(random() % out.size());
  for (std::uint64_t n = random() % 74; n > 0; --n) out.push_back(static_cast<std::byte>(random()));
  return out;
}

TEST(FrameFuzz, ReceiveMessageNeverReadsPastItsFrame) {
  const std::uint64_t seed = from_environment("FVMM_FUZZ_SEED", 2);
  const std::uint64_t rounds = from_environment("FVMM_FUZZ_ROUNDS", 300'000 / kSlower);
  Random random(seed);
  std::uint64_t accepted = 0;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed << " round " << round);
    const auto out = any_stream(random);
    auto [a, b] = PipeStream::make({}, {}, 1024);
    ASSERT_TRUE(a->send(std::span(out), Deadline::after(std::chrono::seconds(10))).ok());
    a.reset();  // then a frame that announces more than came ends in "closed by peer"
    BytesValue in;
    if (!receive_message(*b, FrameType::kHello, in, Deadline::after(std::chrono::seconds(10))).ok()) continue;
    ++accepted;
    const auto header = decode(std::span(out).first<kFrameHeaderBytes>());
    ASSERT_TRUE(header.ok());
    std::vector<std::byte> rest(out.size() - kFrameHeaderBytes - header->payload_bytes);
    ASSERT_TRUE(b->receive(std::span(rest), Deadline::after(std::chrono::seconds(10))).ok());
    ASSERT_TRUE(std::equal(rest.begin(), rest.end(), out.end() - static_cast<std::ptrdiff_t>(rest.size())));
  }
  EXPECT_GT(accepted, rounds / 100);
}

}  // namespace
}  // namespace fvmm::net
