// The few instructions that C has no words for, and the fixed-size names. All callable at CPL 3.
#ifndef FVMM_GUESTS_LIB_CPU_H_
#define FVMM_GUESTS_LIB_CPU_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef unsigned __int128 u128;

#define PAGE_BYTES 4096ULL
#define GIB (1ULL << 30)

struct cpuid_regs {
  u32 eax, ebx, ecx, edx;
};

static inline struct cpuid_regs cpuid(u32 leaf) {
  struct cpuid_regs r;
  __asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
  return r;
}

static inline u64 rdtsc(void) {
  u32 low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
  return (u64)high << 32 | low;
}

static inline void out8(u16 port, u8 value) {
  __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline u8 in8(u16 port) {
  u8 value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
  return value;
}

static inline void mmio_write32(u64 address, u32 value) {
  *(volatile u32*)address = value;
}

static inline u64 min_u64(u64 a, u64 b) {
  return a < b ? a : b;
}
static inline u64 max_u64(u64 a, u64 b) {
  return a > b ? a : b;
}

/// From boot/entry.S: stops the vCPU for good; sleeps until the next interrupt; runs the guest's CPL 0 routine.
__attribute__((noreturn)) void guest_halt(void);
void guest_sleep(void);
u64 guest_call_cpl0(void);

#endif  // FVMM_GUESTS_LIB_CPU_H_
