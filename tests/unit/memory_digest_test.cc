#include <gtest/gtest.h>

#include <array>

#include "memory/digest.h"

namespace fvmm::memory {
namespace {

using Page = std::array<std::byte, kPageBytes>;

TEST(ZeroPage, SeesASingleBitAnywhere) {
  Page page{};
  EXPECT_TRUE(is_zero_page(page));
  for (std::size_t at = 0; at < page.size(); ++at) {
    page[at] = std::byte{0x80};
    EXPECT_FALSE(is_zero_page(page)) << at;
    page[at] = std::byte{0};
  }
}

TEST(Hash, PageHashIsThatOfItsBytes) {
  Page page{};
  page[17] = std::byte{1};
  EXPECT_EQ(hash_page(page), hash_bytes(page));
  EXPECT_NE(hash_page(page), hash_page(Page{}));
}

// XXH3-128 (seed 0) of no bytes, from the specification's test vectors: pins algorithm and byte order on disk.
TEST(Hash, IsCanonicalXxh3OfXxhash) {
  EXPECT_EQ(hash_bytes({}).hex(), "99aa06d3014798d86001c324468d497f");
}

TEST(StreamHash, DoesNotDependOnHowBytesArrive) {
  Page page{};
  for (std::size_t i = 0; i < page.size(); ++i) page[i] = static_cast<std::byte>(i * 7);
  StreamHash hash;
  hash.update(std::span(page).first(1));
  hash.update(std::span(page).subspan(1, 1000));
  hash.update(std::span(page).subspan(1001));
  EXPECT_EQ(hash.finish(), hash_page(page));
}

Digest digest_of(const Digest& parent, std::uint64_t bytes, std::initializer_list<std::pair<PageIndex, Digest>> pages) {
  DigestChain chain(parent, bytes);
  for (const auto& [page, hash] : pages) chain.add(page, hash);
  return chain.finish();
}

TEST(DigestChain, ChangesWithEachOfItsInputs) {
  const Digest a = hash_bytes(std::as_bytes(std::span("a")));
  const Digest b = hash_bytes(std::as_bytes(std::span("b")));
  const Digest base = digest_of({}, 4096, {{1, a}, {2, b}});
  EXPECT_EQ(base, digest_of({}, 4096, {{1, a}, {2, b}}));
  EXPECT_NE(base, digest_of(a, 4096, {{1, a}, {2, b}}));
  EXPECT_NE(base, digest_of({}, 8192, {{1, a}, {2, b}}));
  EXPECT_NE(base, digest_of({}, 4096, {{1, b}, {2, a}}));
  EXPECT_NE(base, digest_of({}, 4096, {{1, a}, {3, b}}));
  EXPECT_NE(base, digest_of({}, 4096, {{1, a}}));
}

TEST(DigestChain, StartForgetsWhatCameBefore) {
  const Digest a = hash_bytes(std::as_bytes(std::span("a")));
  DigestChain chain({}, 4096);
  chain.add(5, a);
  chain.start({}, 4096);
  chain.add(1, a);
  EXPECT_EQ(chain.pages(), 1U);
  EXPECT_EQ(chain.finish(), digest_of({}, 4096, {{1, a}}));
}

TEST(DigestChainDeathTest, RefusesPagesOutOfOrder) {
  DigestChain chain({}, 4096);
  chain.add(5, {});
  EXPECT_DEATH(chain.add(5, {}), "");
}

}  // namespace
}  // namespace fvmm::memory
