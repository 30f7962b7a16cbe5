// What a block of the disk must hold: its version, then words derived from (seed, block, version) alone.
#ifndef FVMM_GUESTS_BLK_CONTENT_H_
#define FVMM_GUESTS_BLK_CONTENT_H_

#include "lib/cpu.h"

#define BLOCK_BYTES 4096
#define BLOCK_WORDS (BLOCK_BYTES / 8)
#define BLOCK_SECTORS (BLOCK_BYTES / 512)

/// The seed and the number of requests answered, in registers of their own: they travel with the vCPU, not with the
/// memory or the disk that they judge.
register u64 g_seed __asm__("r14");
register u64 g_step __asm__("r15");

static inline u64 mix(u64 x) {
  x = (x ^ x >> 31) * 0xd6e8feb86659fd93ULL;
  x = (x ^ x >> 29) * 0xa24baed4963ee407ULL;
  return x ^ x >> 32;
}

static inline void fill_block(u64* words, u64 block, u64 version) {
  const u64 stream = mix(mix(g_seed + block * 0x8ebc6af09c88c6e3ULL) + version * 0x589965cc75374cc3ULL);
  words[0] = version;
  for (u64 i = 1; i < BLOCK_WORDS; ++i) words[i] = mix(stream + i);
}

/// Whether the block holds the version that it names itself.
static inline bool block_is_whole(const u64* words, u64 block) {
  const u64 stream = mix(mix(g_seed + block * 0x8ebc6af09c88c6e3ULL) + words[0] * 0x589965cc75374cc3ULL);
  u64 difference = 0;
  for (u64 i = 1; i < BLOCK_WORDS; ++i) difference |= words[i] ^ mix(stream + i);
  return difference == 0;
}

#endif  // FVMM_GUESTS_BLK_CONTENT_H_
