#include "workload/plant.h"

static u64 page_from_end(const struct region* region, u64 n) {
  return linear_page(region, tested_page(region, region_pages(region) - 1 - n));
}

static u64* words_from_end(const struct region* region, u64 n) {
  return page_address(region->ram, page_from_end(region, n));
}

static void zero_words(u64* words, u64 count) {
  for (u64 i = 0; i < count; ++i) words[i] = 0;
}

static void plant_versions(const struct region* region) {
  for (u64 slot = 0; slot < 4; ++slot) {
    const u64 free_page = slot * region->stride;
    const u64 page = linear_page(region, free_page);
    const u64 version = expected_version(region, free_page);
    u64* words = page_address(region->ram, page);
    if (slot == 0) write_page(words, stream_of(page, version - 1));
    if (slot == 1) write_page(words, stream_of(page, version + 1));
    if (slot == 2) {
      const u64 old = stream_of(page, version - 1);
      for (u64 i = PAGE_WORDS / 2; i < PAGE_WORDS; ++i) words[i] = word_at(old, i);
    }
    if (slot == 3) zero_words(words, PAGE_WORDS / 2);
  }
}

void plant_faults(const struct region* region) {
  if (region_pages(region) <= 8) return;
  zero_words(words_from_end(region, 0), PAGE_WORDS);
  words_from_end(region, 1)[77] ^= 1ULL << 40;
  write_page(words_from_end(region, 2), mix(~g_seed));
  const u64* other = words_from_end(region, 4);
  u64* words = words_from_end(region, 3);
  for (u64 i = 0; i < PAGE_WORDS; ++i) words[i] = other[i];
  if (region->slots >= 8 && g_step >= region->slots) plant_versions(region);
}
