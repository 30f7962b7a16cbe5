#include "lib/serial.h"

// Source: 16550 data sheet (registers), 16-byte transmit FIFO.
#define COM1 0x3f8
#define COM1_IER (COM1 + 1)
#define COM1_FCR (COM1 + 2)
#define COM1_LCR (COM1 + 3)
#define COM1_MCR (COM1 + 4)
#define COM1_LSR (COM1 + 5)
#define LSR_RECEIVED 0x01
#define LSR_TRANSMIT_EMPTY 0x20
#define FIFO_BYTES 16
#define ERRORS_PRINTED_MAX 32
#define READY_POLLS_MAX 100000  // then send anyway: a wedged port must not stop the guest

static u64 slowest_ticks;

void serial_init(void) {
  out8(COM1_IER, 0);
  out8(COM1_LCR, 3);  // 8 data bits, no parity, one stop bit
  out8(COM1_FCR, 1);  // FIFOs on
  out8(COM1_MCR, 3);  // DTR, RTS
}

int serial_poll(void) {
  if (!(in8(COM1_LSR) & LSR_RECEIVED)) return -1;
  return in8(COM1);
}

u64 serial_take_slowest_ticks(void) {
  const u64 ticks = slowest_ticks;
  slowest_ticks = 0;
  return ticks;
}

static void wait_until_ready(void) {
  for (u32 i = 0; i < READY_POLLS_MAX && !(in8(COM1_LSR) & LSR_TRANSMIT_EMPTY); ++i) {
  }
}

void line_start(struct line* line, const char* text) {
  line->length = 0;
  line_text(line, text);
}

static void line_char(struct line* line, char c) {
  if (line->length < LINE_BYTES_MAX) line->text[line->length++] = c;
}

void line_text(struct line* line, const char* text) {
  while (*text) line_char(line, *text++);
}

void line_dec(struct line* line, u64 value) {
  char digits[20];
  u32 n = 0;
  do {
    digits[n++] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  while (n) line_char(line, digits[--n]);
}

void line_hex(struct line* line, u64 value) {
  int shift = 60;
  while (shift > 0 && !(value >> shift)) shift -= 4;
  line_text(line, "0x");
  for (; shift >= 0; shift -= 4) line_char(line, "0123456789abcdef"[value >> shift & 15]);
}

void line_field(struct line* line, const char* key, u64 value) {
  line_char(line, ' ');
  line_text(line, key);
  line_char(line, '=');
  line_dec(line, value);
}

void line_print(struct line* line) {
  if (line->length == LINE_BYTES_MAX) --line->length;
  line_char(line, '\n');
  for (u32 i = 0; i < line->length; ++i) {
    const u64 before = rdtsc();
    if (i % FIFO_BYTES == 0) wait_until_ready();
    out8(COM1, (u8)line->text[i]);
    slowest_ticks = max_u64(slowest_ticks, rdtsc() - before);
  }
}

void print_line(const char* text) {
  struct line line;
  line_start(&line, text);
  line_print(&line);
}

void line_error(u64 nth, const char* kind, u64 n, u64 found, u64 expected) {
  if (nth > ERRORS_PRINTED_MAX) return;
  struct line line;
  line_start(&line, "ERR kind=");
  line_text(&line, kind);
  line_field(&line, "n", n);
  line_field(&line, "found", found);
  line_field(&line, "expected", expected);
  line_print(&line);
}
