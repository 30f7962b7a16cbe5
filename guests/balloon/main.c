// A guest with a virtio balloon, by polling: it gives pages to the balloon and takes them back, as the host wants it
// and for exercise, and looks all of them over again and again: what it wrote, and what it found when it gave a page
// away, stays. docs/guests.md has the options and the lines.
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/time.h"
#include "virtio/queue.h"

#define TYPE_BALLOON 5
#define PAGES 256
#define BATCH 8          // pages of one request
#define ANSWER_MS 20000  // a device that needs longer has lost the request

/// The number of requests answered, in a register of its own; the copy in memory must agree.
register u64 g_requests __asm__("r15");

static u8 pages[PAGES][PAGE_BYTES] __attribute__((aligned(4096)));
static u64 sums[PAGES];  // what each page holds
static u32 pfns[BATCH];
static u64 taken;  // pages given away since the start; the next is taken % PAGES
static u64 back;   // of them, taken back
static u64 requests_copy;
static u64 errors;

static u64 sum_of(const u8* page) {
  const volatile u64* words = (const volatile u64*)page;
  u64 sum = 0x9e3779b97f4a7c15ULL;
  for (u32 i = 0; i < PAGE_BYTES / 8; ++i) sum = (sum ^ words[i]) * 0xff51afd7ed558ccdULL + i;
  return sum;
}

static void report(const char* kind, u64 found, u64 expected) {
  line_error(++errors, kind, g_requests, found, expected);
}

static void verify(u32 page) {
  if (sum_of(pages[page]) != sums[page]) report("page", page, sums[page]);
}

static void write_page(u32 page) {
  volatile u64* words = (volatile u64*)pages[page];
  for (u32 i = 0; i < PAGE_BYTES / 8; ++i) words[i] = (g_requests << 32 | page << 16 | i) * 0xc4ceb9fe1a85ec53ULL + 1;
  sums[page] = sum_of(pages[page]);
}

static u64 away(void) {
  return taken - back;
}

static void tell_actual(void) {
  queue_config_write(4, (u32)away());
}

static void inflate(u32 count, u64 tsc_khz) {
  for (u32 i = 0; i < count; ++i) {
    const u32 page = (u32)((taken + i) % PAGES);
    verify(page);
    pfns[i] = (u32)((u64)pages[page] / PAGE_BYTES);
  }
  const struct queue_part part = {(u64)pfns, count * 4, false};
  queue_offer_chain(&part, 1);
  if (!queue_wait(ticks_of_ms(ANSWER_MS, tsc_khz))) {
    report("timeout", 0, 1);
    return;
  }
  const struct used_element used = queue_take();
  if (used.id != queue_last_head()) report("head", used.id, queue_last_head());
  if (used.length != 0) report("length", used.length, 0);
  queue_acknowledge();
  for (u32 i = 0; i < count; ++i) {
    const u32 page = (u32)(taken++ % PAGES);
    sums[page] = sum_of(pages[page]);
  }
  tell_actual();
  requests_copy = ++g_requests;
}

// The device need not be told: it has not asked for that (MUST_TELL_HOST).
static void deflate(u32 count) {
  for (u32 i = 0; i < count; ++i) {
    const u32 page = (u32)(back++ % PAGES);
    verify(page);
    write_page(page);
  }
  tell_actual();
}

static u64 verify_all(u64 zero) {
  u64 zeros = 0;
  for (u32 i = 0; i < PAGES; ++i) verify(i);
  for (u64 i = back; i < taken; ++i) zeros += sums[i % PAGES] == zero;
  if (requests_copy != g_requests) report("counter", requests_copy, g_requests);
  return zeros;
}

static void print_beat(u64 n, u64 zeros, u64 ms) {
  struct line line;
  line_start(&line, "BL");
  line_field(&line, "n", n);
  line_field(&line, "target", (u32)queue_config(0));
  line_field(&line, "actual", away());
  line_field(&line, "zero", zeros);
  line_field(&line, "requests", g_requests);
  line_field(&line, "errors", errors);
  line_field(&line, "ms", ms);
  line_print(&line);
}

/// One step towards what the host wants; else, for exercise, a few pages there and back.
static void turn(bool churn, u64 tsc_khz) {
  const u64 wanted = (u32)queue_config(0);
  const u64 target = wanted < PAGES ? wanted : PAGES;
  if (away() < target) {
    inflate((u32)(target - away() < BATCH ? target - away() : BATCH), tsc_khz);
  } else if (away() > target) {
    deflate((u32)(away() - target < BATCH ? away() - target : BATCH));
  } else if (churn && target + BATCH <= PAGES) {
    inflate(BATCH, tsc_khz);
  }
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  const u64 boot_ticks = rdtsc();
  guest_boot(start_info);
  const u64 tsc_khz = tsc_khz_find();
  const u64 beat = ticks_of_ms(max_u64(option("beat", 200), 1), tsc_khz);
  const u64 gap = tsc_khz * 1000 / max_u64(option("rate", 200), 1);
  const bool churn = option("churn", 0) != 0;
  const u64 zero = sum_of(pages[0]);
  for (u32 i = 0; i < PAGES; ++i) write_page(i);
  const u64 slot = queue_start(TYPE_BALLOON, option("event_idx", 1) != 0);
  struct line line;
  line_start(&line, "FVMM balloon");
  line_field(&line, "slot", slot);
  line_field(&line, "tsc_khz", tsc_khz);
  line_print(&line);
  u64 beats = 0;
  u64 next_beat = rdtsc() + beat;
  for (u64 next = rdtsc();;) {
    const u64 now = rdtsc();
    if (now >= next) {
      turn(churn, tsc_khz);
      next = max_u64(next + gap, rdtsc());
    }
    if (now >= next_beat) {
      const u64 zeros = verify_all(zero);
      print_beat(++beats, zeros, ms_of_ticks(rdtsc() - boot_ticks, tsc_khz));
      next_beat = max_u64(next_beat + beat, rdtsc());
    }
  }
}
