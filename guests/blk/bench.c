#include "blk/bench.h"

#include "blk/content.h"
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/time.h"

#define WARM_UP 200  // requests before the clock starts

struct measured {
  u64 requests, us;
};

/// The place of the n-th request.
typedef u64 (*bench_place)(u64 number, u64 sectors, u64 bytes);

static u64 anywhere(u64 number, u64 sectors, u64 bytes) {
  const u64 step = bytes / 512;
  return mix(g_seed ^ number) % (sectors / step) * step;
}

static u64 one_after_another(u64 number, u64 sectors, u64 bytes) {
  const u64 step = bytes / 512;
  return number % (sectors / step) * step;
}

static struct measured measure(bench_read read, bench_place place, u64 sectors, u64 bytes, u64 ticks, u64 tsc_khz) {
  u64 number = 0;
  while (number < WARM_UP) {
    if (!read(place(number++, sectors, bytes), bytes)) fatal("the disk does not read");
  }
  const u64 begin = rdtsc();
  u64 now = begin;
  for (; now - begin < ticks; now = rdtsc()) {
    if (!read(place(number++, sectors, bytes), bytes)) fatal("the disk does not read");
  }
  return (struct measured){number - WARM_UP, (now - begin) * 1000 / tsc_khz};
}

void bench_disk(bench_read read, u64 sectors, u64 large, u64 ms, u64 tsc_khz) {
  if (sectors * 512 < large) fatal("the disk is too small to be measured");
  const u64 ticks = ticks_of_ms(ms, tsc_khz);
  const struct measured small = measure(read, anywhere, sectors, BLOCK_BYTES, ticks, tsc_khz);
  const struct measured sequential = measure(read, one_after_another, sectors, large, ticks, tsc_khz);
  struct line line;
  line_start(&line, "BENCH");
  line_field(&line, "random", small.requests);
  line_field(&line, "random_us", small.us);
  line_field(&line, "sequential", sequential.requests);
  line_field(&line, "sequential_bytes", large);
  line_field(&line, "sequential_us", sequential.us);
  line_print(&line);
}
