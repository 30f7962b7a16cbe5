// A guest that reads its ACPI tables as an operating system does, and says once a tick which generation id it has.
// docs/guests.md has the options and the lines.
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/sleep.h"
#include "lib/time.h"

#define RSDP_OF_START_INFO 32  // offset of rsdp_paddr in hvm_start_info
#define HEADER_BYTES 36

static u32 read32(u64 address) {
  return *(const volatile u32*)address;
}
static u64 read64(u64 address) {
  return *(const volatile u64*)address;
}

static bool says(u64 address, const char* text) {
  for (u64 i = 0; text[i] != 0; ++i) {
    if (((const char*)address)[i] != text[i]) return false;
  }
  return true;
}

static bool sums_to_zero(u64 address, u64 bytes) {
  u8 sum = 0;
  for (u64 i = 0; i < bytes; ++i) sum = (u8)(sum + ((const u8*)address)[i]);
  return sum == 0;
}

static void check_table(u64 address, const char* signature) {
  if (!says(address, signature) || !sums_to_zero(address, read32(address + 4))) fatal(signature);
}

/// Address of the 16 bytes: in the DSDT, behind the device's name, ADDR is a package whose first element is an integer
/// of 32 bits (DWordPrefix). A whole interpreter would find the same.
static u64 find_generation_id(u64 dsdt) {
  const u64 end = dsdt + read32(dsdt + 4);
  for (u64 at = dsdt + HEADER_BYTES; at + 16 < end; ++at) {
    if (!says(at, "ADDR") || ((const u8*)at)[4] != 0x12) continue;
    const u64 element = at + 7;  // PackageOp, its length, the number of elements
    if (((const u8*)element)[0] == 0x0C) return read32(element + 1);
  }
  fatal("no generation id in the DSDT");
}

static u64 find_tables(u64 start_info) {
  const u64 rsdp = read64(start_info + RSDP_OF_START_INFO);
  if (rsdp == 0) fatal("no ACPI tables");
  if (!says(rsdp, "RSD PTR ") || !sums_to_zero(rsdp, 20) || !sums_to_zero(rsdp, 36)) fatal("RSDP");
  const u64 xsdt = read64(rsdp + 24);
  check_table(xsdt, "XSDT");
  u64 dsdt = 0;
  u64 cpus = 0;
  for (u64 at = xsdt + HEADER_BYTES; at < xsdt + read32(xsdt + 4); at += 8) {
    const u64 table = read64(at);
    if (says(table, "FACP")) {
      check_table(table, "FACP");
      dsdt = read64(table + 140);
    } else {
      check_table(table, "APIC");
      for (u64 entry = table + 44; entry < table + read32(table + 4); entry += ((const u8*)entry)[1]) {
        if (((const u8*)entry)[0] == 0) ++cpus;
      }
    }
  }
  check_table(dsdt, "DSDT");
  struct line line;
  line_start(&line, "ACPI");
  line_field(&line, "cpus", cpus);
  line_print(&line);
  return dsdt;
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  guest_boot(start_info);
  const u64 tsc_khz = tsc_khz_find();
  const u64 tick = ticks_of_ms(max_u64(option("tick", 100), 1), tsc_khz);
  if (!sleep_init()) fatal("no local APIC");
  const u64 id = find_generation_id(find_tables(start_info));
  u64 n = 0;
  for (u64 next = rdtsc() + tick;; next = max_u64(next + tick, rdtsc())) {
    sleep_until(next, tsc_khz);
    struct line line;
    line_start(&line, "GENERATION ");
    line_hex(&line, read64(id));
    line_text(&line, "-");
    line_hex(&line, read64(id + 8));
    line_field(&line, "n", ++n);
    line_print(&line);
  }
}
