// COM1 (16550 at 0x3f8), polled. Each port access leaves the guest (tens of microseconds), so lines are short, and the
// line status is read once per FIFO, not per byte.
#ifndef FVMM_GUESTS_LIB_SERIAL_H_
#define FVMM_GUESTS_LIB_SERIAL_H_

#include "lib/cpu.h"

#define LINE_BYTES_MAX 512

/// One line of output under construction. Text past LINE_BYTES_MAX is cut.
struct line {
  u32 length;
  char text[LINE_BYTES_MAX];
};

void serial_init(void);
/// One received byte, or -1. One port read when nothing waits.
int serial_poll(void);
/// The longest single port write since the last call, in TSC ticks.
u64 serial_take_slowest_ticks(void);

void line_start(struct line* line, const char* text);
void line_text(struct line* line, const char* text);
void line_dec(struct line* line, u64 value);
void line_hex(struct line* line, u64 value);
/// Appends " KEY=VALUE", in decimal.
void line_field(struct line* line, const char* key, u64 value);
/// Ends the line with a newline and sends it.
void line_print(struct line* line);
void print_line(const char* text);
/// "ERR kind=KIND n=N found=FOUND expected=EXPECTED", where it happened; of a guest's errors the first 32 are said.
/// @param nth  which error of the guest this is, from 1
void line_error(u64 nth, const char* kind, u64 n, u64 found, u64 expected);

#endif  // FVMM_GUESTS_LIB_SERIAL_H_
