// Runs, at CPL 0, the instructions that a KVM without hardware below it cannot emulate, and prints what they did: "INSN
// name=HEX" for each, then "INSN done". The test knows what must come out (docs/vmm.md has the list).
#include "boot/layout.h"
#include "lib/boot.h"
#include "lib/serial.h"

#define RESULTS_MAX 32

static struct {
  const char* name;
  u64 value;
} results[RESULTS_MAX];
static u32 result_count;

static void keep(const char* name, u64 value) {
  if (result_count == RESULTS_MAX) return;
  results[result_count].name = name;
  results[result_count++].value = value;
}

static u64 flags(void) {
  u64 value;
  __asm__ volatile("pushfq\n\tpop %0" : "=r"(value));
  return value;
}

// FXSAVE's area: what the instructions below change, set and read as a whole.
static _Alignas(16) u8 area[512];

static void load_area(u16 status, u8 tags, u32 mxcsr) {
  for (u32 i = 0; i < sizeof area; ++i) area[i] = 0;
  *(u16*)(area + 0) = 0x37f;  // all exceptions masked
  *(u16*)(area + 2) = status;
  area[4] = tags;
  *(u32*)(area + 24) = mxcsr;
  __asm__ volatile("fxrstor64 %0" : : "m"(area));
}

static u64 save_area(void) {  // tags, status, MXCSR
  __asm__ volatile("fxsave64 %0" : "=m"(area));
  return (u64)area[4] << 48 | (u64) * (u16*)(area + 2) << 32 | *(u32*)(area + 24);
}

static void floating(void) {
  load_area(0x3841, 0xff, 0x1f80);
  __asm__ volatile("fnclex");
  keep("fnclex", save_area());
  load_area(0x0041, 0xff, 0x1f80);
  __asm__ volatile("emms");
  keep("emms", save_area());
  u64 ax = 0x1122334455667788;
  __asm__ volatile("fnstsw %%ax" : "+a"(ax));
  keep("fnstsw_ax", ax);
  u32 stored = 0xffffffff;
  __asm__ volatile("fnstsw %0" : "+m"(stored));
  keep("fnstsw_m16", stored);
  __asm__ volatile("fwait");
  const u32 wanted = 0x9fc0;
  __asm__ volatile("ldmxcsr %0" : : "m"(wanted));
  keep("ldmxcsr", save_area());
  __asm__ volatile("stmxcsr %0" : "+m"(stored));
  keep("stmxcsr", stored);
}

static void counting(void) {
  u64 in = 0xf0f0000000000001, out = ~0ULL;
  __asm__ volatile("popcnt %1, %0\n\tpushfq\n\tpop %1" : "+r"(out), "+r"(in) : : "cc");
  keep("popcnt64", out);
  keep("popcnt64_flags", in & 0x8d5);
  in = 0, out = ~0ULL;
  __asm__ volatile("popcnt %k1, %k0\n\tpushfq\n\tpop %1" : "+r"(out), "+r"(in) : : "cc");
  keep("popcnt32_of_0", out);
  keep("popcnt32_of_0_flags", in & 0x8d5);
  u16 small = 0x8001;
  out = ~0ULL;
  __asm__ volatile("popcnt %1, %w0" : "+r"(out) : "m"(small) : "cc");
  keep("popcnt16_mem", out);
  out = 0xffffffff12345678;
  __asm__ volatile("crc32b %b1, %k0" : "+r"(out) : "q"(0xabULL));
  keep("crc32b", out);
  in = 0x0123456789abcdef;
  out = 0;
  __asm__ volatile("crc32q %1, %0" : "+r"(out) : "m"(in));
  keep("crc32q", out);
}

static void selectors(void) {
  u64 out = ~0ULL;
  __asm__ volatile("lar %w1, %k0" : "+r"(out) : "r"((u64)SEL_CODE64) : "cc");
  keep("lar", out);
  out = ~0ULL;
  __asm__ volatile("lsl %w1, %k0" : "+r"(out) : "r"((u64)SEL_DATA) : "cc");
  keep("lsl", out);
  out = ~0ULL;
  __asm__ volatile("lar %w1, %k0" : "+r"(out) : "r"(0ULL) : "cc");
  keep("lar_null", out);
  u8 good = 9;
  u16 selector = SEL_DATA;
  __asm__ volatile("verw %1\n\tsetz %0" : "+m"(good) : "m"(selector) : "cc");
  keep("verw_data", good);
  selector = SEL_CODE64;
  __asm__ volatile("verw %1\n\tsetz %0" : "+m"(good) : "m"(selector) : "cc");
  keep("verw_code", good);
}

static void access_flag(void) {
  if ((cpuid(7).ebx & 1U << 20) == 0) return;  // SMAP
  __asm__ volatile("stac" : : : "memory", "cc");
  keep("stac", flags() & 1U << 18);
  __asm__ volatile("clac" : : : "memory", "cc");
  keep("clac", flags() & 1U << 18);
}

static void cache(void) {
  if ((cpuid(7).ebx & 1U << 24) == 0) return;  // CLWB
  area[0] = 0x5a;
  __asm__ volatile("clwb %0" : "+m"(area[0]));
  keep("clwb", area[0]);
}

// Called at CPL 0 by boot/entry.S, before there is an interrupt table: an exception here is a triple fault.
void guest_setup_cpl0(void);
void guest_setup_cpl0(void) {
  floating();
  counting();
  selectors();
  access_flag();
  cache();
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  guest_boot(start_info);
  for (u32 i = 0; i < result_count; ++i) {
    struct line line;
    line_start(&line, "INSN ");
    line_text(&line, results[i].name);
    line_text(&line, "=");
    line_hex(&line, results[i].value);
    line_print(&line);
  }
  print_line("INSN done");
  guest_halt();
}
