// Time in TSC ticks, and the largest gap between two looks at it.
#ifndef FVMM_GUESTS_LIB_TIME_H_
#define FVMM_GUESTS_LIB_TIME_H_

#include "lib/cpu.h"

/// TSC frequency: tsc_khz= on the command line, else CPUID 0x40000010, 0x15, 0x16, else 10 ms of PIT channel 0.
u64 tsc_khz_find(void);

static inline u64 ticks_of_ms(u64 ms, u64 tsc_khz) {
  return ms * tsc_khz;
}
static inline u64 ms_of_ticks(u64 ticks, u64 tsc_khz) {
  return ticks / tsc_khz;
}
static inline u64 us_of_ticks(u64 ticks, u64 tsc_khz) {
  return ticks * 1000 / tsc_khz;
}

/// Watches for time in which this guest did not run: read() at least every few tens of microseconds.
struct gap_watch {
  u64 last;
  u64 largest;  // ticks, since the owner last cleared it
};

static inline u64 gap_read(struct gap_watch* watch) {
  const u64 now = rdtsc();
  if (now - watch->last > watch->largest) watch->largest = now - watch->last;
  watch->last = now;
  return now;
}

/// Call after time that is no gap: the guest's own output, or a sleep that it asked for.
static inline void gap_skip(struct gap_watch* watch) {
  watch->last = rdtsc();
}

#endif  // FVMM_GUESTS_LIB_TIME_H_
