// How fast a disk answers: one request at a time, so what is measured is the way through the device.
#ifndef FVMM_GUESTS_BLK_BENCH_H_
#define FVMM_GUESTS_BLK_BENCH_H_

#include "lib/cpu.h"

/// One read to its end, of so many bytes at that place, into a buffer of the caller's; whether it was answered well.
typedef bool (*bench_read)(u64 sector, u64 bytes);

/// Random reads of one block, then sequential ones of `large` bytes, each for `ms`; prints one line BENCH.
void bench_disk(bench_read read, u64 sectors, u64 large, u64 ms, u64 tsc_khz);

#endif  // FVMM_GUESTS_BLK_BENCH_H_
