// What is wrong with a page, and the log of bad pages.
#ifndef FVMM_GUESTS_WORKLOAD_VERDICT_H_
#define FVMM_GUESTS_WORKLOAD_VERDICT_H_

#include "lib/time.h"
#include "workload/region.h"

/// Distinct bad pages and the lines about them. One per guest, on the only vCPU.
struct findings {
  const struct region* region;
  struct gap_watch* watch;  // the searches below take long: they keep it running
  u64* bitmap;              // one bit per linear RAM page: was ever found bad
  u64 errors;               // bits set
  u64 lines;                // printed in this sweep
  u64 unprinted;            // in this sweep, past ERROR_LINES_PER_SWEEP_MAX
};

#define ERROR_LINES_PER_SWEEP_MAX 32  // a byte costs tens of microseconds: a wholly lost memory must not stop the beat

/// Reserves and clears the bitmap behind the image; call before region_init.
void findings_reserve(struct findings* findings, const struct ram* ram);

/// Reports a free page that does not hold `version`; `sweep` is the number of the sweep under way.
void report_bad_page(struct findings* findings, u64 free_page, u64 version, u64 sweep);

/// Reports the guest's own linear page `page`, on which a copy of the step counter reads `found`.
void report_own_page(struct findings* findings, u64 page, u64 found, u64 sweep);

/// Ends a sweep: says how many reports were not printed.
void findings_end_sweep(struct findings* findings, u64 sweep);

#endif  // FVMM_GUESTS_WORKLOAD_VERDICT_H_
