#include "lib/boot.h"

#include "boot/layout.h"
#include "lib/serial.h"

// Source: Xen public headers, arch-x86/hvm/start_info.h.
#define START_MAGIC 0x336ec578
#define MEMMAP_RAM 1
#define MEMMAP_ENTRIES_MAX 256

struct hvm_start_info {
  u32 magic, version, flags, nr_modules;
  u64 modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
  u32 memmap_entries, reserved;
};

struct hvm_memmap_entry {
  u64 addr, size;
  u32 type, reserved;
};

extern u64 page_directories[PAGE_DIRECTORIES][512];
extern u8 image_end[];

static struct ram ram;
static char command_line[COMMAND_LINE_BYTES_MAX];

void fatal(const char* text) {
  struct line line;
  line_start(&line, "FATAL ");
  line_text(&line, text);
  line_print(&line);
  guest_halt();
}

u64 image_end_page(void) {
  return (u64)image_end / PAGE_BYTES;
}

const struct ram* guest_ram(void) {
  return &ram;
}

/// Identity-maps [from, to); both whole GiB, not the first one, which the image maps.
static void map_gibs(u64 from, u64 to) {
  for (u64 gib = from / GIB; gib < to / GIB; ++gib) {
    for (u64 i = 0; i < 512; ++i) page_directories[gib][i] = (gib * GIB + i * (GIB / 512)) | PTE_PAGE_2M;
  }
}

static void copy_command_line(const char* from) {
  for (u32 i = 0; from && from[i] && i < COMMAND_LINE_BYTES_MAX - 1; ++i) command_line[i] = from[i];
}

/// Sorts by insertion and joins what overlaps or touches.
void ram_reserve(u64 first, u64 end) {
  if (first >= end) return;
  u32 kept = 0;
  for (u32 i = 0; i < ram.reserved_count; ++i) {
    const struct page_range r = ram.reserved[i];
    if (r.end < first || r.first > end) {
      ram.reserved[kept++] = r;
    } else {
      first = min_u64(first, r.first);
      end = max_u64(end, r.end);
    }
  }
  if (kept == RESERVED_RANGES_MAX) fatal("too many reserved ranges");
  u32 at = kept;
  for (; at > 0 && ram.reserved[at - 1].first > first; --at) ram.reserved[at] = ram.reserved[at - 1];
  ram.reserved[at] = (struct page_range){first, end};
  ram.reserved_count = kept + 1;
}

/// Reserves what lies between RAM entries of [base, base + pages), whose first page has the linear number `linear`.
static void reserve_gaps(const struct hvm_memmap_entry* map, u32 entries, u64 base, u64 end, u64 linear) {
  for (u64 at = base; at < end;) {
    u64 gap_end = end;  // the start of the next RAM entry after `at`, or where the one around `at` starts
    u64 covered = at;
    for (u32 i = 0; i < entries; ++i) {
      if (map[i].type != MEMMAP_RAM) continue;
      const u64 first = (map[i].addr + PAGE_BYTES - 1) & -PAGE_BYTES;
      const u64 last = (map[i].addr + map[i].size) & -PAGE_BYTES;
      if (first <= at && last > covered) covered = last;
      if (first > at) gap_end = min_u64(gap_end, first);
    }
    if (covered == at) {
      ram_reserve(linear + (at - base) / PAGE_BYTES, linear + (gap_end - base) / PAGE_BYTES);
      at = gap_end;
    } else {
      at = covered;
    }
  }
}

static void read_ram(const struct hvm_start_info* info) {
  const struct hvm_memmap_entry* map = (const struct hvm_memmap_entry*)info->memmap_paddr;
  const u64 limit = PAGE_DIRECTORIES * GIB;
  u64 low_end = 0;
  u64 high_end = 4 * GIB;
  if (info->memmap_entries > MEMMAP_ENTRIES_MAX) fatal("memory map too long");
  for (u32 i = 0; i < info->memmap_entries; ++i) {
    const u64 end = min_u64(map[i].addr + map[i].size, limit) & -PAGE_BYTES;
    if (map[i].type != MEMMAP_RAM) continue;
    if (map[i].addr < 4 * GIB) low_end = max_u64(low_end, min_u64(end, 4 * GIB));
    if (end > 4 * GIB) high_end = max_u64(high_end, end);
  }
  ram.low_pages = low_end / PAGE_BYTES;
  ram.total_pages = ram.low_pages + (high_end - 4 * GIB) / PAGE_BYTES;
  map_gibs(4 * GIB, (high_end + GIB - 1) & -GIB);
  reserve_gaps(map, info->memmap_entries, 0, low_end, 0);
  reserve_gaps(map, info->memmap_entries, 4 * GIB, high_end, ram.low_pages);
  ram_reserve(0, image_end_page());  // below 1 MiB firmware and VMM keep their tables
}

void idt_init(void);

void guest_boot(u64 start_info) {
  idt_init();
  serial_init();
  map_gibs(GIB, 4 * GIB);
  const struct hvm_start_info* info = (const struct hvm_start_info*)start_info;
  if (info->magic != START_MAGIC) fatal("no hvm_start_info");
  if (info->version < 1 || info->memmap_entries == 0) fatal("no memory map in hvm_start_info");
  copy_command_line((const char*)info->cmdline_paddr);
  read_ram(info);
}

u64 option(const char* key, u64 otherwise) {
  for (const char* at = command_line; *at; ++at) {
    if (at != command_line && at[-1] != ' ') continue;
    u32 n = 0;
    while (key[n] && at[n] == key[n]) ++n;
    if (key[n] || at[n] != '=' || at[n + 1] < '0' || at[n + 1] > '9') continue;
    u64 value = 0;
    for (at += n + 1; *at >= '0' && *at <= '9'; ++at) value = value * 10 + (u64)(*at - '0');
    return value;
  }
  return otherwise;
}
