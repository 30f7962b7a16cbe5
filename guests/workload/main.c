// A guest that fills its RAM, rewrites a working set at a given rate and keeps verifying every page. docs/guests.md
// has the options and the lines that it prints.
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/sleep.h"
#include "lib/time.h"
#include "workload/plant.h"
#include "workload/region.h"
#include "workload/verdict.h"

#define DIRTY_BURST_PAGES 64  // steps between two looks at the rest of the loop
#define SWEEP_CHUNK_PAGES 16  // likewise
#define DEBT_MS_MAX 20        // of missed steps that are made up for, after a pause or under overload
#define VERIFY_SLICE_US 1000  // of work before a rest, for cpu < 100
#define SLEEP_US_MIN 200      // a shorter wait is spun
#define RESET_PORT 0x64       // i8042: pulse the reset line
#define RESET_COMMAND 0xfe

/// When steps are due: an exact rate, with the fraction of a tick carried on.
struct pace {
  u64 interval, interval_fraction;  // ticks from step to step, and 2^-32 of a tick
  u64 next, next_fraction;
  u64 debt_max;  // ticks
  bool on;
};

/// The verification sweep under way, and the last one completed.
struct sweep {
  bool on;
  u64 position;    // pages of this sweep done
  u64 start_step;  // g_step when it began
  u64 completed;
  u64 completed_start_step;
  u64 rest_until;  // TSC: no verification before
  u64 slice_start;
};

struct guest {
  struct region region;
  struct findings findings;
  struct gap_watch watch;
  struct pace pace;
  struct sweep sweep;
  u64 tsc_khz, boot_ticks, cpu_percent;
  u64 beats, beat_ticks, next_beat, largest_gap;
  u64 plant_beat;  // heartbeat after which faults are planted; 0: never
  u64 step_copy;   // of g_step: tells a stale page of the guest's own
};

static struct guest guest;

static void print_boot(void) {
  const struct ram* ram = guest.region.ram;
  struct line line;
  line_start(&line, "FVMM workload");
  line_field(&line, "seed", g_seed);
  line_field(&line, "pages", region_pages(&guest.region));
  line_field(&line, "ws_pages", guest.region.slots);
  line_field(&line, "ws_stride", guest.region.stride);
  line_field(&line, "ram_pages", ram->total_pages);
  line_field(&line, "tsc_khz", guest.tsc_khz);
  for (u32 i = 0; i < ram->reserved_count; ++i) {
    line_text(&line, i ? "," : " reserved=");
    line_dec(&line, ram->reserved[i].first);
    line_text(&line, "-");
    line_dec(&line, ram->reserved[i].end - 1);
  }
  line_print(&line);
}

static u64* address_of(u64 free_page) {
  return page_address(guest.region.ram, linear_page(&guest.region, free_page));
}

static void fill(void) {
  const u64 start = rdtsc();
  for (u64 n = 0; n < region_pages(&guest.region); ++n) {
    const u64 page = linear_page(&guest.region, tested_page(&guest.region, n));
    write_page(page_address(guest.region.ram, page), stream_of(page, 0));
  }
  struct line line;
  line_start(&line, "FILLED");
  line_field(&line, "ms", ms_of_ticks(rdtsc() - start, guest.tsc_khz));
  line_print(&line);
}

static void verify_page(u64 free_page, u64 version) {
  const u64 page = linear_page(&guest.region, free_page);
  if (!page_holds(page_address(guest.region.ram, page), stream_of(page, version))) {
    report_bad_page(&guest.findings, free_page, version, guest.sweep.completed + 1);
  }
}

/// Verifies the next page of the working set and writes its next version.
static void dirty_step(void) {
  if (guest.step_copy != g_step) {
    report_own_page(&guest.findings, (u64)&guest.step_copy / PAGE_BYTES, guest.step_copy, guest.sweep.completed + 1);
  }
  const u64 free_page = page_of_step(&guest.region, g_step);
  const u64 version = g_step >> guest.region.slot_shift;
  verify_page(free_page, version);
  write_page(address_of(free_page), stream_of(linear_page(&guest.region, free_page), version + 1));
  guest.step_copy = ++g_step;
}

static void pace_start(u64 rate, u64 now) {
  const u64 hz = guest.tsc_khz * 1000;
  guest.pace.on = rate && guest.region.slots;
  if (!guest.pace.on) return;
  guest.pace.interval = hz / rate;
  guest.pace.interval_fraction = ((hz % rate) << 32) / rate;
  guest.pace.next = now;
  guest.pace.debt_max = ticks_of_ms(DEBT_MS_MAX, guest.tsc_khz);
}

/// Does the steps that are due, at most a burst.
static void dirty_due_pages(u64 now) {
  struct pace* pace = &guest.pace;
  if (now > pace->next && now - pace->next > pace->debt_max) pace->next = now - pace->debt_max;
  for (u32 i = 0; i < DIRTY_BURST_PAGES && pace->next <= now; ++i) {
    dirty_step();
    pace->next_fraction += pace->interval_fraction;
    pace->next += pace->interval + (pace->next_fraction >> 32);
    pace->next_fraction &= 0xffffffff;
    now = gap_read(&guest.watch);
  }
}

static void sweep_some_pages(void) {
  struct sweep* sweep = &guest.sweep;
  const u64 pages = region_pages(&guest.region);
  if (sweep->position == 0) sweep->start_step = g_step;
  const u64 end = min_u64(sweep->position + SWEEP_CHUNK_PAGES, pages);
  for (; sweep->position < end; ++sweep->position) {
    const u64 free_page = tested_page(&guest.region, sweep->position);
    verify_page(free_page, expected_version(&guest.region, free_page));
    (void)gap_read(&guest.watch);
  }
  if (sweep->position < pages) return;
  sweep->position = 0;
  ++sweep->completed;
  sweep->completed_start_step = sweep->start_step;
  findings_end_sweep(&guest.findings, sweep->completed);
}

/// Keeps verification at cpu_percent of the time: after a slice of work, a rest in proportion.
static void rest_if_due(u64 now) {
  struct sweep* sweep = &guest.sweep;
  const u64 worked = now - sweep->slice_start;
  if (guest.cpu_percent >= 100 || worked < guest.tsc_khz * VERIFY_SLICE_US / 1000) return;
  // A slice that a pause stretched does not stretch the rest as well.
  const u64 counted = min_u64(worked, 2 * guest.tsc_khz * VERIFY_SLICE_US / 1000);
  sweep->rest_until = now + counted * (100 - guest.cpu_percent) / guest.cpu_percent;
  sweep->slice_start = sweep->rest_until;
}

static void print_heartbeat(u64 now) {
  guest.largest_gap = max_u64(guest.largest_gap, guest.watch.largest);
  struct line line;
  line_start(&line, "HB");
  line_field(&line, "n", ++guest.beats);
  line_field(&line, "step", g_step);
  line_field(&line, "sweeps", guest.sweep.completed);
  line_field(&line, "sweep_step", guest.sweep.completed_start_step);
  line_field(&line, "pages", region_pages(&guest.region));
  line_field(&line, "errors", guest.findings.errors);
  line_field(&line, "gap_us", us_of_ticks(guest.watch.largest, guest.tsc_khz));
  line_field(&line, "maxgap_us", us_of_ticks(guest.largest_gap, guest.tsc_khz));
  line_field(&line, "io_us", us_of_ticks(serial_take_slowest_ticks(), guest.tsc_khz));
  line_field(&line, "ms", ms_of_ticks(now - guest.boot_ticks, guest.tsc_khz));
  line_print(&line);
  guest.watch.largest = 0;
}

static void print_with_step(const char* text) {
  struct line line;
  line_start(&line, text);
  line_field(&line, "step", g_step);
  line_print(&line);
}

static void obey_command(u64 rate) {
  switch (serial_poll()) {
    case 'p':
      guest.pace.on = false;
      print_with_step("PAUSED");
      break;
    case 'r':
      pace_start(rate, rdtsc());
      print_with_step("RESUMED");
      break;
    case 'q':
      print_with_step("QUIT");
      out8(RESET_PORT, RESET_COMMAND);
      guest_halt();
    default:
      break;
  }
}

static void plant(void) {
  plant_faults(&guest.region);
  guest.step_copy ^= 1;
  print_with_step("PLANTED");
}

/// Waits in HLT when nothing is due for a while. A late wake-up counts as a gap.
static void sleep_if_idle(u64 now) {
  u64 due = guest.next_beat;
  if (guest.pace.on) due = min_u64(due, guest.pace.next);
  if (guest.sweep.on) due = min_u64(due, guest.sweep.rest_until);
  if (due <= now || due - now < guest.tsc_khz * SLEEP_US_MIN / 1000) return;
  sleep_until(due, guest.tsc_khz);
  guest.watch.last = due;
}

__attribute__((noreturn)) static void run(u64 rate) {
  gap_skip(&guest.watch);
  guest.watch.largest = 0;
  guest.next_beat = guest.watch.last + guest.beat_ticks;
  guest.sweep.slice_start = guest.watch.last;
  pace_start(rate, guest.watch.last);
  for (;;) {
    const u64 now = gap_read(&guest.watch);
    if (guest.pace.on) dirty_due_pages(now);
    if (guest.sweep.on && now >= guest.sweep.rest_until) {
      sweep_some_pages();
      rest_if_due(guest.watch.last);
    }
    if (now >= guest.next_beat) {
      print_heartbeat(now);
      obey_command(rate);
      if (guest.beats == guest.plant_beat) plant();
      guest.next_beat = max_u64(guest.next_beat + guest.beat_ticks, now);
      gap_skip(&guest.watch);
    }
    if (guest.cpu_percent < 100) sleep_if_idle(now);
  }
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  const u64 boot_ticks = rdtsc();
  guest_boot(start_info);
  guest.boot_ticks = boot_ticks;
  g_seed = option("seed", 1);
  guest.tsc_khz = tsc_khz_find();
  guest.findings.region = &guest.region;
  guest.findings.watch = &guest.watch;
  findings_reserve(&guest.findings, guest_ram());
  region_init(&guest.region, guest_ram());
  guest.beat_ticks = ticks_of_ms(max_u64(option("beat", 200), 1), guest.tsc_khz);
  guest.plant_beat = option("plant", 0);
  guest.cpu_percent = min_u64(option("cpu", 100), 100);
  guest.sweep.on = option("verify", 1) && guest.cpu_percent && region_pages(&guest.region);
  if (guest.cpu_percent < 100) (void)sleep_init();
  print_boot();
  fill();
  run(option("rate", 1000));
}
