// A guest that sleeps in HLT and says once a tick that it is alive. docs/guests.md has the options and the lines.
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/sleep.h"
#include "lib/time.h"

/// The number of ticks, in a register of its own; the copy in memory must agree.
register u64 g_ticks __asm__("r15");

static u64 ticks_copy;

static void print_tick(u64 ms) {
  struct line line;
  line_start(&line, ticks_copy == g_ticks ? "TICK" : "ERR kind=counter");
  if (ticks_copy != g_ticks) line_field(&line, "memory", ticks_copy);
  ticks_copy = ++g_ticks;
  line_field(&line, "n", g_ticks);
  line_field(&line, "ms", ms);
  line_print(&line);
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  const u64 boot_ticks = rdtsc();
  guest_boot(start_info);
  const u64 tsc_khz = tsc_khz_find();
  const u64 tick = ticks_of_ms(max_u64(option("tick", 1000), 1), tsc_khz);
  if (!sleep_init()) fatal("no local APIC");
  struct line line;
  line_start(&line, "FVMM idle");
  line_field(&line, "tsc_khz", tsc_khz);
  line_print(&line);
  for (u64 next = rdtsc() + tick;; next = max_u64(next + tick, rdtsc())) {
    sleep_until(next, tsc_khz);
    print_tick(ms_of_ticks(rdtsc() - boot_ticks, tsc_khz));
  }
}
