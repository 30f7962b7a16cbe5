// What every guest does first at CPL 3: interrupt table, identity map, RAM map and command line from hvm_start_info.
#ifndef FVMM_GUESTS_LIB_BOOT_H_
#define FVMM_GUESTS_LIB_BOOT_H_

#include "lib/cpu.h"

#define RESERVED_RANGES_MAX 16
#define COMMAND_LINE_BYTES_MAX 2048

/// Pages [first, end) in linear RAM page numbers.
struct page_range {
  u64 first, end;
};

/// RAM as the start info gives it. A linear RAM page number is the guest-physical address / 4096 below the hole; pages
/// from 4 GiB on follow without a gap.
struct ram {
  u64 low_pages;    // up to the end of the highest RAM entry below 4 GiB
  u64 total_pages;  // low_pages and those from 4 GiB on
  u32 reserved_count;
  struct page_range reserved[RESERVED_RANGES_MAX];  // sorted, disjoint; not RAM, or in use by this guest
};

/// Initialises the serial port, the interrupt table and the identity map, and reads the RAM map and the command line.
/// Prints FATAL and halts if the start info is not usable.
void guest_boot(u64 start_info);

/// The RAM map; changed only by ram_reserve.
const struct ram* guest_ram(void);
/// Adds a range. Ranges may overlap; a range past the table's limit is FATAL.
void ram_reserve(u64 first, u64 end);
/// First linear page after the image (text, data, bss, stacks, page tables).
u64 image_end_page(void);

/// Guest-physical (= virtual) address of a linear RAM page.
static inline u64* page_address(const struct ram* ram, u64 page) {
  return (u64*)(page < ram->low_pages ? page * PAGE_BYTES : 4 * GIB + (page - ram->low_pages) * PAGE_BYTES);
}

/// The number after "KEY=" on the command line, else `otherwise`. Keys are whole words.
u64 option(const char* key, u64 otherwise);

/// Prints "FATAL TEXT" and halts.
__attribute__((noreturn)) void fatal(const char* text);

#endif  // FVMM_GUESTS_LIB_BOOT_H_
