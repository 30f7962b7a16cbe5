// Which pages are tested, which of them are rewritten, and which version each must hold after a given step.
//
// The working set has W = 2^k slots. Cycle c is the steps [cW, (c+1)W); in it every slot is rewritten once, in the
// order slot = (position * m + a) mod W with m odd and both drawn from (seed, c). So before step s = cW + position a
// slot's version is c, or c + 1 once its position in this cycle's order has passed: a closed form, nothing remembered.
#ifndef FVMM_GUESTS_WORKLOAD_REGION_H_
#define FVMM_GUESTS_WORKLOAD_REGION_H_

#include "lib/boot.h"
#include "workload/content.h"

struct region {
  const struct ram* ram;
  u64 free_pages;  // linear pages that nothing reserves, in order; "free page" f is the f-th of them
  u64 slots;       // W; 0: nothing is rewritten
  u32 slot_shift;  // log2(W)
  u64 stride;      // free pages from one slot to the next
  bool filled;     // all free pages are tested; else the slots alone
};

/// Options read: fill, ws, spread.
void region_init(struct region* region, const struct ram* ram);

/// Number of tested pages.
static inline u64 region_pages(const struct region* region) {
  return region->filled ? region->free_pages : region->slots;
}

/// The free page of the n-th tested page.
static inline u64 tested_page(const struct region* region, u64 n) {
  return region->filled ? n : n * region->stride;
}

/// The linear RAM page of a free page.
static inline u64 linear_page(const struct region* region, u64 free_page) {
  u64 page = free_page;
  for (u32 i = 0; i < region->ram->reserved_count; ++i) {
    const struct page_range r = region->ram->reserved[i];
    if (page >= r.first) page += r.end - r.first;
  }
  return page;
}

/// One cycle's order of slots.
struct order {
  u64 multiplier, offset;
};

static inline struct order order_of(u64 cycle) {
  const u64 draw = mix(g_seed ^ mix(cycle + 0x2545f4914f6cdd1dULL));
  return (struct order){draw | 1, draw >> 32};
}

/// The free page that step `step` rewrites; it goes from version step / W to the next.
static inline u64 page_of_step(const struct region* region, u64 step) {
  const struct order order = order_of(step >> region->slot_shift);
  return ((step * order.multiplier + order.offset) & (region->slots - 1)) * region->stride;
}

/// The version that a free page must hold before step g_step is done.
u64 expected_version(const struct region* region, u64 free_page);

#endif  // FVMM_GUESTS_WORKLOAD_REGION_H_
