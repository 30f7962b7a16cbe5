// A guest that drives one virtio-mmio device by polling: it asks for pages of bytes, keeps a sum of each page, and
// looks all of them over again and again. docs/guests.md has the options and the lines.
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/time.h"
#include "virtio/queue.h"

#define PAGES 64
#define ANSWER_MS 20000  // a device that needs longer has lost the request

/// The number of requests answered, in a register of its own; the copy in memory must agree.
register u64 g_requests __asm__("r15");

static u8 pages[PAGES][PAGE_BYTES] __attribute__((aligned(4096)));  // written by the device alone
static u64 sums[PAGES];                                             // 0: not filled yet
static u64 requests_copy;
static u64 errors;

static u64 sum_of(const u8* page) {
  const u64* words = (const u64*)page;
  u64 sum = 0x9e3779b97f4a7c15ULL;
  for (u32 i = 0; i < PAGE_BYTES / 8; ++i) sum = (sum ^ words[i]) * 0xff51afd7ed558ccdULL + i;
  return sum ? sum : 1;
}

static void report(const char* kind, u64 found, u64 expected) {
  line_error(++errors, kind, g_requests, found, expected);
}

static void verify_all(void) {
  for (u32 i = 0; i < PAGES; ++i) {
    if (sums[i] && sum_of(pages[i]) != sums[i]) report("page", i, sums[i]);
  }
  if (requests_copy != g_requests) report("counter", requests_copy, g_requests);
}

/// One page from the device. `same`: it always gives the same bytes.
static void request(u64 tsc_khz, bool same) {
  const u32 page = (u32)(g_requests % PAGES);
  if (sums[page] && sum_of(pages[page]) != sums[page]) report("page", page, sums[page]);
  queue_offer((u64)pages[page], PAGE_BYTES);
  if (!queue_wait(ticks_of_ms(ANSWER_MS, tsc_khz))) {
    report("timeout", 0, 1);
    return;
  }
  const struct used_element used = queue_take();
  if (used.id != queue_last_head()) report("head", used.id, queue_last_head());
  if (used.length != PAGE_BYTES) report("length", used.length, PAGE_BYTES);
  queue_check_interrupt(report);
  const u64 sum = sum_of(pages[page]);
  if (sum == sums[page] && !same) report("stale", sum, 0);
  sums[page] = sum;
  requests_copy = ++g_requests;
}

static void print_beat(u64 n, u64 ms) {
  struct line line;
  line_start(&line, "VQ");
  line_field(&line, "n", n);
  line_field(&line, "requests", g_requests);
  line_field(&line, "errors", errors);
  line_field(&line, "ms", ms);
  line_print(&line);
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  const u64 boot_ticks = rdtsc();
  guest_boot(start_info);
  const u64 tsc_khz = tsc_khz_find();
  const u64 beat = ticks_of_ms(max_u64(option("beat", 200), 1), tsc_khz);
  const u64 gap = tsc_khz * 1000 / max_u64(option("rate", 200), 1);
  const bool same = option("same", 0) != 0;
  const u64 slot = queue_start((u32)option("type", 4), option("event_idx", 1) != 0);
  struct line line;
  line_start(&line, "FVMM virtio");
  line_field(&line, "slot", slot);
  line_field(&line, "tsc_khz", tsc_khz);
  line_print(&line);
  u64 beats = 0;
  u64 next_beat = rdtsc() + beat;
  for (u64 next = rdtsc();;) {
    const u64 now = rdtsc();
    if (now >= next) {
      request(tsc_khz, same);
      next = max_u64(next + gap, rdtsc());
    }
    if (now >= next_beat) {
      verify_all();
      print_beat(++beats, ms_of_ticks(rdtsc() - boot_ticks, tsc_khz));
      next_beat = max_u64(next_beat + beat, rdtsc());
    }
  }
}
