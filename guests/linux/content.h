// What init computes, step by step. The test that reads its marks computes the same, so one wrong byte in any page
// shows.
#pragma once

#include <stdint.h>

enum {
  kContentPageBytes = 4096,
  kContentWordsPerPage = kContentPageBytes / 8,
  kContentStepsPerBeat = 5000,
};

/// One thread's work: `pages` pages of its own, and the sum over everything it has read in them.
struct Content {
  uint64_t* words;  // pages * kContentWordsPerPage, zero at the beginning
  uint64_t pages;
  uint64_t seed;
  uint64_t step;
  uint64_t sum;
};

/// Any number to a well-mixed one (splitmix64's finalizer, Steele et al. 2014).
static inline uint64_t content_mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
  return x ^ (x >> 31);
}

/// Reads a word that an earlier step may have written, writes it anew, and takes both into the sum.
static inline void content_step(struct Content* content) {
  const uint64_t draw = content_mix(content->seed + content->step * 0x9e3779b97f4a7c15U);
  uint64_t* const word =
      &content->words[(draw % content->pages) * kContentWordsPerPage + (draw >> 32) % kContentWordsPerPage];
  *word = content_mix(*word + draw);
  content->sum = content_mix(content->sum ^ *word);
  ++content->step;
}

static inline void content_beat(struct Content* content) {
  for (int i = 0; i < kContentStepsPerBeat; ++i) content_step(content);
}
