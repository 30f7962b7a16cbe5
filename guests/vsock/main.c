// A guest that programs of the host talk to over vsock, by polling: what it gets on its port goes back as it came, and
// with out=PORT it reaches for a program itself, sends a pattern and expects it back. docs/guests.md has the options
// and the lines.
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/time.h"
#include "vsock/connection.h"

#define ASK_MS 100  // between two attempts to reach a program

/// Packets taken, in a register of its own; the copy in memory must agree.
register u64 g_packets __asm__("r15");

static u64 packets_copy;

void report(const char* kind, u64 found, u64 expected) {
  line_error(++figures.errors, kind, g_packets, found, expected);
}

static void print_beat(u64 n, u64 ms) {
  struct line line;
  line_start(&line, "VS");
  line_field(&line, "n", n);
  line_field(&line, "connections", connection_count());
  line_field(&line, "opened", figures.opened);
  line_field(&line, "refused", figures.refused);
  line_field(&line, "echoed", figures.echoed);
  line_field(&line, "verified", figures.verified);
  line_field(&line, "resets", figures.resets);
  line_field(&line, "packets", g_packets);
  line_field(&line, "errors", figures.errors);
  line_field(&line, "ms", ms);
  line_print(&line);
}

static void print_start(const char* text, u64 slot) {
  struct line line;
  line_start(&line, text);
  if (slot != ~0ULL) line_field(&line, "slot", slot);
  line_field(&line, "cid", packets_cid());
  line_print(&line);
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  const u64 boot_ticks = rdtsc();
  guest_boot(start_info);
  const u64 tsc_khz = tsc_khz_find();
  const u64 beat = ticks_of_ms(max_u64(option("beat", 200), 1), tsc_khz);
  const u32 port = (u32)option("port", 5000);
  const u32 out = (u32)option("out", 0);
  print_start("FVMM vsock", packets_start(option("event_idx", 1) != 0));
  u64 beats = 0;
  u64 next_beat = rdtsc() + beat;
  u64 next_ask = 0;
  for (;;) {
    if (packets_reset()) {
      connection_forget_all();
      print_start("VS reset", ~0ULL);
    }
    const struct packet* const packet = packets_take(report);
    if (packet) {
      packets_copy = ++g_packets;
      connection_packet(packet, port);
      packets_give_back();
    }
    connection_pump_all();
    if (packets_copy != g_packets) report("counter", packets_copy, g_packets);
    const u64 now = rdtsc();
    if (out != 0 && now >= next_ask) {
      connection_ask(out);
      next_ask = now + ticks_of_ms(ASK_MS, tsc_khz);
    }
    if (now >= next_beat) {
      print_beat(++beats, ms_of_ticks(now - boot_ticks, tsc_khz));
      next_beat = max_u64(next_beat + beat, rdtsc());
    }
  }
}
