// A guest that holds known values in all registers and keeps checking them: proof that a vCPU's state arrived whole.
// docs/guests.md has the options and the lines.
#include "lib/boot.h"
#include "lib/serial.h"
#include "lib/time.h"
#include "regs/layout.h"

u32 regs_spin(u64 deadline);
extern u64 regs_found;

/// In the order in which regs_spin numbers them.
static const char* const kUserRegisters[] = {
    "rbx",  "rcx",     "rdx",     "rsi",   "rdi",    "rbp",    "r8",   "r9",   "r10",  "r11",  "r12",
    "r13",  "r14",     "r15",     "rax",   "rsp",    "rflags", "ds",   "es",   "fs",   "gs",   "ss",
    "cs",   "fs_word", "gs_word", "mxcsr", "x87_cw", "mm0",    "mm1",  "mm2",  "mm3",  "mm4",  "mm5",
    "mm6",  "mm7",     "xmm0",    "xmm1",  "xmm2",   "xmm3",   "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
    "xmm9", "xmm10",   "xmm11",   "xmm12", "xmm13",  "xmm14",  "xmm15"};

/// In the order of the bits that guest_service answers with.
static const char* const kKernelRegisters[KERNEL_REGISTERS] = {"cr0",  "cr4",   "dr0",     "dr1",     "dr2",
                                                               "dr3",  "efer",  "fs_base", "gs_base", "kernel_gs_base",
                                                               "star", "lstar", "sfmask",  "pat"};

static u64 errors;

static void print_bad(const char* name, bool has_value, u64 value) {
  struct line line;
  ++errors;
  line_start(&line, "ERR reg=");
  line_text(&line, name);
  if (has_value) {
    line_text(&line, " found=");
    line_hex(&line, value);
  }
  line_print(&line);
}

static void check_kernel_registers(void) {
  const u64 bad = guest_call_cpl0();
  for (u32 i = 0; i < KERNEL_REGISTERS; ++i) {
    if (bad >> i & 1) print_bad(kKernelRegisters[i], false, 0);
  }
}

static void print_beat(u64 n, u64 ms) {
  struct line line;
  line_start(&line, errors ? "REGS bad" : "REGS ok");
  line_field(&line, "n", n);
  if (errors) line_field(&line, "errors", errors);
  line_field(&line, "ms", ms);
  line_print(&line);
}

void guest_main(u64 start_info);
void guest_main(u64 start_info) {
  const u64 boot_ticks = rdtsc();
  guest_boot(start_info);
  const u64 tsc_khz = tsc_khz_find();
  const u64 beat = ticks_of_ms(max_u64(option("beat", 200), 1), tsc_khz);
  print_line("FVMM regs");
  for (u64 n = 1;; ++n) {
    const u64 end = rdtsc() + beat;
    for (u32 bad = 1; bad && rdtsc() < end;) {
      bad = regs_spin(end);
      if (bad) print_bad(kUserRegisters[bad - 1], true, regs_found);
    }
    check_kernel_registers();
    print_beat(n, ms_of_ticks(rdtsc() - boot_ticks, tsc_khz));
  }
}
