// A guest that touches its memory when it is told to and says how long that took: what a page costs on its first read,
// its first write, and later. docs/guests.md has the commands and the lines that it prints.
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/sleep.h"
#include "lib/time.h"

#define IDLE_US 2000  // between two looks at the serial port

/// Pages in linear numbers, both tested halves of what is free: the first is read before it is written, the second not.
struct half {
  u64 first, count;
};

static struct half halves[2];
static u64 tsc_khz;
static u64 sum;     // so that no read is left out
static u64 rounds;  // of writing: each writes another value

static void halves_init(const struct ram* ram) {
  u64 first = image_end_page();
  u64 longest = 0;
  // The longest run between two reserved ranges.
  for (u32 i = 0; i <= ram->reserved_count; ++i) {
    const u64 from = i ? max_u64(ram->reserved[i - 1].end, image_end_page()) : image_end_page();
    const u64 to = i < ram->reserved_count ? ram->reserved[i].first : ram->total_pages;
    if (to > from && to - from > longest) {
      longest = to - from;
      first = from;
    }
  }
  halves[0] = (struct half){first, longest / 2};
  halves[1] = (struct half){first + longest / 2, longest / 2};
}

static volatile u64* word_of(u64 page) {
  return page_address(guest_ram(), page);
}

static void read_half(const struct half* half) {
  for (u64 i = 0; i < half->count; ++i) sum += *word_of(half->first + i);
}

static void write_half(const struct half* half) {
  ++rounds;
  for (u64 i = 0; i < half->count; ++i) *word_of(half->first + i) = (half->first + i) ^ rounds;
}

static void print_took(const char* what, u64 pages, u64 ticks) {
  struct line line;
  line_start(&line, what);
  line_field(&line, "pages", pages);
  line_field(&line, "us", us_of_ticks(ticks, tsc_khz));
  line_field(&line, "ns_page", us_of_ticks(ticks * 1000, tsc_khz) / max_u64(pages, 1));
  line_print(&line);
}

static void obey(int command) {
  const u64 start = rdtsc();
  switch (command) {
    case 'r':
      read_half(&halves[0]);
      print_took("READ", halves[0].count, rdtsc() - start);
      break;
    case 'w':
      write_half(&halves[0]);
      print_took("WROTE", halves[0].count, rdtsc() - start);
      break;
    case 'c':
      write_half(&halves[1]);
      print_took("COLD", halves[1].count, rdtsc() - start);
      break;
    default:
      break;
  }
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  guest_boot(start_info);
  tsc_khz = tsc_khz_find();
  halves_init(guest_ram());
  (void)sleep_init();
  write_half(&halves[0]);  // nothing is zero, nothing is a hole of the template
  write_half(&halves[1]);
  print_took("TOUCH ready", halves[0].count + halves[1].count, 0);
  for (;;) {
    obey(serial_poll());
    sleep_until(rdtsc() + tsc_khz * IDLE_US / 1000, tsc_khz);
  }
}
