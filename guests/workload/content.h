// What a page must hold: 512 words derived from (seed, page, version) alone. Nothing about a page is stored in it or
// anywhere else, so a page that was lost, torn, swapped or left stale cannot vouch for itself.
#ifndef FVMM_GUESTS_WORKLOAD_CONTENT_H_
#define FVMM_GUESTS_WORKLOAD_CONTENT_H_

#include "lib/cpu.h"

#define PAGE_WORDS 512

/// The seed and the number of dirty steps done, in registers for the guest's whole life: they travel with the vCPU, not
/// with the memory that they judge.
register u64 g_seed __asm__("r14");
register u64 g_step __asm__("r15");

/// A bijection of 64-bit words in which every input bit reaches every output bit.
static inline u64 mix(u64 x) {
  x = (x ^ x >> 31) * 0xd6e8feb86659fd93ULL;
  x = (x ^ x >> 29) * 0xa24baed4963ee407ULL;
  return x ^ x >> 32;
}

/// Start of the page's stream. `page` is a linear RAM page number; version 0 is the fill.
static inline u64 stream_of(u64 page, u64 version) {
  return mix(mix(g_seed + page * 0x8ebc6af09c88c6e3ULL) + version * 0x589965cc75374cc3ULL);
}

/// Word `index` of a stream: the halves of a full product, folded. Independent of its neighbours, so that several
/// multiplications are in flight.
static inline u64 word_at(u64 stream, u64 index) {
  const u64 x = stream + index * 0x9fb21c651e98df25ULL;
  const u128 product = (u128)x * (x ^ 0xc2b2ae3d27d4eb4fULL);
  return (u64)product ^ (u64)(product >> 64);
}

static inline void write_page(u64* words, u64 stream) {
  for (u64 i = 0; i < PAGE_WORDS; i += 4) {
    words[i] = word_at(stream, i);
    words[i + 1] = word_at(stream, i + 1);
    words[i + 2] = word_at(stream, i + 2);
    words[i + 3] = word_at(stream, i + 3);
  }
}

static inline bool page_holds(const u64* words, u64 stream) {
  u64 difference = 0;
  for (u64 i = 0; i < PAGE_WORDS; i += 4) {
    difference |= words[i] ^ word_at(stream, i);
    difference |= words[i + 1] ^ word_at(stream, i + 1);
    difference |= words[i + 2] ^ word_at(stream, i + 2);
    difference |= words[i + 3] ^ word_at(stream, i + 3);
  }
  return difference == 0;
}

#endif  // FVMM_GUESTS_WORKLOAD_CONTENT_H_
