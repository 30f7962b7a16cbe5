// XXH3-128 over pages, files and chains of pages: the identity of a template's content. Not a defence against forgery.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/id.h"
#include "base/units.h"
#include "memory/layout.h"

struct XXH3_state_s;  // xxhash.h

namespace fvmm::memory {

/// XXH3-128, 16 bytes in canonical (big-endian) order.
using Digest = Id;

/// XXH3-128 of one page.
Digest hash_page(std::span<const std::byte, kPageBytes> page);
/// That of a page of zeros.
const Digest& zero_page_hash();
/// XXH3-128 of any bytes.
Digest hash_bytes(std::span<const std::byte> bytes);
/// Whether all 4096 bytes are zero. Leaves at the first word that is not.
bool is_zero_page(std::span<const std::byte, kPageBytes> page);

/// XXH3-128 of bytes that arrive in pieces. Owner: one thread.
class StreamHash {
 public:
  StreamHash();
  void reset();
  void update(std::span<const std::byte> bytes);
  [[nodiscard]] Digest finish() const;  // of all so far; more may follow

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

/// Digest of a generation, page by page. For a base the parent is none() and the pages are its non-zero ones; for a
/// delta the parent is the digest of the generation below and the pages are those of the delta, zero pages included.
/// Both ends of a migration reach the same digest from the same pages without a store. Owner: one thread.
class DigestChain {
 public:
  DigestChain(const Digest& parent, std::uint64_t memory_bytes) { start(parent, memory_bytes); }
  /// Forgets everything and begins again.
  void start(const Digest& parent, std::uint64_t memory_bytes);
  /// Pages in ascending order, each once (FVMM_CHECK).
  void add(PageIndex page, const Digest& hash);
  [[nodiscard]] std::uint64_t pages() const { return pages_; }
  [[nodiscard]] Digest finish() const { return hash_.finish(); }

 private:
  StreamHash hash_;
  PageIndex next_ = 0;
  std::uint64_t pages_ = 0;
};

}  // namespace fvmm::memory
