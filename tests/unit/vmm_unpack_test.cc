// Kernels compressed as their build does it: whole, cut at every place that matters, damaged, and too large.
#include "vmm/unpack.h"

#include <gtest/gtest.h>

#include <random>

#include "base/units.h"
#include "support/packed.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint64_t kPlenty = 64 * kMiB;

class Unpack : public ::testing::TestWithParam<std::string> {
 protected:
  /// Neither constant nor noise, longer than one chunk of the unpacker.
  static std::string content(std::size_t bytes = kMiB + 17) {
    std::mt19937_64 random(7);
    std::string text(bytes, '\0');
    for (std::size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(i % 3 == 0 ? random() : i / 977);
    return text;
  }
  static Result<std::string> unpacked(const std::string& packed, std::uint64_t limit = kPlenty) {
    return unpack(std::as_bytes(std::span(packed)), limit);
  }
};

TEST_P(Unpack, GivesBackWhatWasPacked) {
  const std::string packed = test::packed(GetParam(), content());
  EXPECT_EQ(compression_of(std::as_bytes(std::span(packed))), GetParam());
  const auto got = unpacked(packed);
  ASSERT_TRUE(got.ok()) << got.error().message();
  EXPECT_EQ(*got, content());
}

TEST_P(Unpack, BytesBehindTheEndAreLeftAlone) {
  // Four of them: the size that Linux's build appends.
  const auto got = unpacked(test::packed(GetParam(), content()) + std::string("\x11\x00\x30\x00", 4));
  ASSERT_TRUE(got.ok()) << got.error().message();
  EXPECT_EQ(*got, content());
}

TEST_P(Unpack, TheLimitItselfIsAllowedAndOneByteMoreIsNot) {
  const std::string packed = test::packed(GetParam(), content());
  EXPECT_TRUE(unpacked(packed, content().size()).ok());
  const auto over = unpacked(packed, content().size() - 1);
  ASSERT_FALSE(over.ok());
  EXPECT_EQ(over.error().code(), Errc::kResourceExhausted);
  EXPECT_NE(over.error().message().find("unpacks to more than"), std::string::npos);
}

TEST_P(Unpack, ABombEndsAtTheLimit) {
  const std::string packed = test::packed(GetParam(), std::string(16 * kMiB, '\0'));
  ASSERT_LT(packed.size(), kMiB);
  const auto over = unpacked(packed, kMiB);
  ASSERT_FALSE(over.ok());
  EXPECT_EQ(over.error().code(), Errc::kResourceExhausted);
}

TEST_P(Unpack, CutShortIsRefused) {
  const std::string packed = test::packed(GetParam(), content(50'000));
  for (const std::size_t left : {packed.size() - 1, packed.size() / 2, std::size_t{20}, std::size_t{8}}) {
    const auto got = unpacked(packed.substr(0, left));
    ASSERT_FALSE(got.ok()) << left;
    EXPECT_EQ(got.error().code(), Errc::kInvalidArgument) << left;
    EXPECT_NE(got.error().message().find(GetParam()), std::string::npos) << got.error().message();
  }
}

TEST_P(Unpack, DamageIsRefusedOrGivesOtherBytesAndNeverMoreThanTheLimit) {
  const std::string whole = test::packed(GetParam(), content(20'000));
  std::mt19937_64 random(11);
  for (int i = 0; i < 200; ++i) {
    std::string packed = whole;
    packed[8 + random() % (packed.size() - 8)] ^= static_cast<char>(1 << random() % 8);
    const auto got = unpacked(packed, 100'000);
    if (got) {
      EXPECT_LE(got->size(), 100'000U);
      continue;
    }
    EXPECT_TRUE(got.error().code() == Errc::kInvalidArgument || got.error().code() == Errc::kResourceExhausted);
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Unpack, ::testing::Values("gzip", "xz", "zstd", "lz4"),
                         [](const auto& format) { return format.param; });

TEST(UnpackOther, UnknownFormatsAreRefusedByName) {
  for (const std::string& packed : {std::string(), std::string("BZh91AY"), std::string("\x5d\x00\x00", 3)}) {
    EXPECT_EQ(compression_of(std::as_bytes(std::span(packed))), "");
    const auto got = unpack(std::as_bytes(std::span(packed)), kPlenty);
    ASSERT_FALSE(got.ok());
    EXPECT_EQ(got.error().code(), Errc::kInvalidArgument);
    EXPECT_NE(got.error().message().find("gzip, xz, zstd and lz4"), std::string::npos);
  }
}

}  // namespace
}  // namespace fvmm::vmm
