// Sleeping in HLT until a local APIC timer interrupt. CPL 3 asks for it through an interrupt gate.
#ifndef FVMM_GUESTS_LIB_SLEEP_H_
#define FVMM_GUESTS_LIB_SLEEP_H_

#include "lib/cpu.h"

/// Prepares the local APIC (xAPIC, at its reset address). False if the CPU has none: then sleep_until spins.
bool sleep_init(void);

/// Returns at or after `deadline` (TSC ticks).
void sleep_until(u64 deadline, u64 tsc_khz);

#endif  // FVMM_GUESTS_LIB_SLEEP_H_
