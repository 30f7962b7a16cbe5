#include "lib/time.h"

#include "lib/boot.h"

#define CPUID_HYPERVISOR 0x40000000
#define CPUID_HYPERVISOR_TSC 0x40000010  // eax: TSC in kHz (VMware's leaf, KVM user space may set it too)
#define CPUID_TSC 0x15
#define CPUID_FREQUENCY 0x16

#define PIT_CHANNEL0 0x40
#define PIT_COMMAND 0x43
#define PIT_HZ 1193182
#define CALIBRATE_MS 10
#define CALIBRATE_POLLS_MAX 5000  // each is three exits

static u64 from_cpuid(void) {
  if (cpuid(1).ecx >> 31) {
    const u32 top = cpuid(CPUID_HYPERVISOR).eax;
    if (top >= CPUID_HYPERVISOR_TSC && top < CPUID_HYPERVISOR + 0x10000) {
      const u32 khz = cpuid(CPUID_HYPERVISOR_TSC).eax;
      if (khz) return khz;
    }
  }
  const u32 highest = cpuid(0).eax;
  if (highest >= CPUID_TSC) {
    const struct cpuid_regs r = cpuid(CPUID_TSC);
    if (r.eax && r.ebx && r.ecx) return (u64)r.ecx * r.ebx / r.eax / 1000;
  }
  if (highest >= CPUID_FREQUENCY) return (cpuid(CPUID_FREQUENCY).eax & 0xffff) * 1000ULL;
  return 0;
}

static u32 pit_count(void) {
  out8(PIT_COMMAND, 0);  // latch channel 0
  const u32 low = in8(PIT_CHANNEL0);
  return low | (u32)in8(PIT_CHANNEL0) << 8;
}

/// Compares the TSC with PIT channel 0, which counts 65,535 down in 55 ms (mode 0; its interrupt stays unseen).
static u64 from_pit(void) {
  out8(PIT_COMMAND, 0x30);
  out8(PIT_CHANNEL0, 0xff);
  out8(PIT_CHANNEL0, 0xff);
  const u64 start = rdtsc();
  const u32 first = pit_count();
  for (u32 i = 0; i < CALIBRATE_POLLS_MAX; ++i) {
    const u64 now = rdtsc();
    const u32 passed = first - pit_count();
    if (passed >= PIT_HZ / 1000 * CALIBRATE_MS) return (now - start) * PIT_HZ / passed / 1000;
  }
  return 0;
}

u64 tsc_khz_find(void) {
  u64 khz = option("tsc_khz", 0);
  if (!khz) khz = from_cpuid();
  if (!khz) khz = from_pit();
  if (!khz) fatal("no TSC frequency: give tsc_khz=");
  return khz;
}
