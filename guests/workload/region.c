#include "workload/region.h"

#define PAGES_PER_MIB 256

void region_init(struct region* region, const struct ram* ram) {
  region->ram = ram;
  region->free_pages = ram->total_pages;
  for (u32 i = 0; i < ram->reserved_count; ++i) region->free_pages -= ram->reserved[i].end - ram->reserved[i].first;
  region->filled = option("fill", 1) != 0;
  const u64 wanted = min_u64(option("ws", 64) * PAGES_PER_MIB, region->free_pages);
  region->slots = 0;
  region->slot_shift = 0;
  region->stride = 1;
  if (!wanted) return;
  while (2ULL << region->slot_shift <= wanted) ++region->slot_shift;
  region->slots = 1ULL << region->slot_shift;
  if (option("spread", 0)) region->stride = region->free_pages >> region->slot_shift;
}

/// Inverse of an odd number modulo 2^64: x = m is right in 3 bits, and each Newton step doubles them.
static u64 inverse(u64 m) {
  u64 x = m;
  for (u32 i = 0; i < 5; ++i) x *= 2 - m * x;
  return x;
}

u64 expected_version(const struct region* region, u64 free_page) {
  u64 slot = free_page;
  if (region->stride != 1) {
    if (slot % region->stride) return 0;
    slot /= region->stride;
  }
  if (slot >= region->slots) return 0;
  const u64 cycle = g_step >> region->slot_shift;
  const struct order order = order_of(cycle);
  const u64 mask = region->slots - 1;
  const u64 position = ((slot - order.offset) * inverse(order.multiplier)) & mask;
  return cycle + (position < (g_step & mask));
}
