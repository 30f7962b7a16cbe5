#include "lib/sleep.h"

#include "boot/layout.h"

// Source: Intel SDM vol. 3 ch. 11 (local APIC registers).
#define LAPIC_SPURIOUS 0xf0
#define LAPIC_ENABLE 0x100
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_TIMER_COUNT 0x380
#define LAPIC_TIMER_DIVIDE 0x3e0
#define DIVIDE_BY_1 0xb
#define LAPIC_KHZ 1000000  // KVM's timer; on another clock a sleep is cut into pieces or ends late
#define SLEEP_MS_MAX 1000
#define CPUID_1_EDX_APIC (1u << 9)

static bool has_lapic;

bool sleep_init(void) {
  has_lapic = (cpuid(1).edx & CPUID_1_EDX_APIC) != 0;
  if (!has_lapic) return false;
  mmio_write32(LAPIC_BASE + LAPIC_SPURIOUS, LAPIC_ENABLE | VECTOR_SPURIOUS);
  mmio_write32(LAPIC_BASE + LAPIC_TIMER_DIVIDE, DIVIDE_BY_1);
  mmio_write32(LAPIC_BASE + LAPIC_LVT_TIMER, VECTOR_TIMER);  // one shot
  return true;
}

void sleep_until(u64 deadline, u64 tsc_khz) {
  for (u64 now = rdtsc(); now < deadline; now = rdtsc()) {
    if (!has_lapic) continue;
    const u64 ticks = min_u64(deadline - now, SLEEP_MS_MAX * tsc_khz);
    mmio_write32(LAPIC_BASE + LAPIC_TIMER_COUNT, (u32)(ticks * LAPIC_KHZ / tsc_khz) + 1);
    guest_sleep();
  }
}
