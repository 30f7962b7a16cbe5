#include "memory/digest.h"

#include <xxhash.h>

#include <bit>
#include <cstring>

#include "base/check.h"

namespace fvmm::memory {
namespace {

static_assert(std::endian::native == std::endian::little, "file formats are little endian and written as they are");

constexpr std::array<char, 16> kChainDomain = {'F', 'V', 'M', 'M', '-', 'd', 'i', 'g', 'e', 's', 't', '-', 'v', '1'};

Digest canonical(XXH128_hash_t hash) {
  XXH128_canonical_t bytes;
  XXH128_canonicalFromHash(&bytes, hash);
  Digest digest;
  static_assert(sizeof(bytes.digest) == sizeof(digest.bytes));
  std::memcpy(digest.bytes.data(), bytes.digest, sizeof(bytes.digest));
  return digest;
}

}  // namespace

Digest hash_page(std::span<const std::byte, kPageBytes> page) {
  return canonical(XXH3_128bits(page.data(), kPageBytes));
}

const Digest& zero_page_hash() {
  static const Digest hash = hash_page(std::array<std::byte, kPageBytes>{});
  return hash;
}

Digest hash_bytes(std::span<const std::byte> bytes) {
  return canonical(XXH3_128bits(bytes.data(), bytes.size()));
}

bool is_zero_page(std::span<const std::byte, kPageBytes> page) {
  constexpr std::size_t kBlockWords = 32;  // long enough to vectorise, short enough to leave early
  const std::byte* at = page.data();
  for (std::size_t done = 0; done < kPageBytes; done += kBlockWords * sizeof(std::uint64_t)) {
    std::uint64_t block[kBlockWords];
    std::memcpy(block, at + done, sizeof(block));
    std::uint64_t any = 0;
    for (const std::uint64_t word : block) any |= word;
    if (any != 0) return false;
  }
  return true;
}

void StreamHash::Free::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}

StreamHash::StreamHash() : state_(XXH3_createState()) {
  FVMM_CHECK(state_ != nullptr, "no memory for a hash state");
  reset();
}

void StreamHash::reset() {
  XXH3_128bits_reset(state_.get());
}

void StreamHash::update(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_.get(), bytes.data(), bytes.size());
}

Digest StreamHash::finish() const {
  return canonical(XXH3_128bits_digest(state_.get()));
}

void DigestChain::start(const Digest& parent, std::uint64_t memory_bytes) {
  hash_.reset();
  hash_.update(std::as_bytes(std::span(kChainDomain)));
  hash_.update(parent.bytes);
  hash_.update(std::as_bytes(std::span(&memory_bytes, 1)));
  next_ = 0;
  pages_ = 0;
}

void DigestChain::add(PageIndex page, const Digest& hash) {
  FVMM_CHECK(page >= next_, "pages of a digest come in ascending order");
  hash_.update(std::as_bytes(std::span(&page, 1)));
  hash_.update(hash.bytes);
  next_ = page + 1;
  ++pages_;
}

}  // namespace fvmm::memory
