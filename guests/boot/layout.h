// Numbers that the assembly and the C code share.
#ifndef FVMM_GUESTS_BOOT_LAYOUT_H_
#define FVMM_GUESTS_BOOT_LAYOUT_H_

// CPL 3 uses Linux's selectors: KVM-PVM runs it on the host's own descriptors, and they show.
#define SEL_CODE64 0x08     // CPL 0, 64-bit code
#define SEL_DATA 0x10       // CPL 0 data
#define SEL_USER_DATA 0x2b  // CPL 3 data
#define SEL_USER_CODE 0x33  // CPL 3, 64-bit code
#define SEL_TSS 0x40

#define PAGE_DIRECTORIES 64  // one per GiB of guest-physical addresses that can be mapped
#define PTE_TABLE 0x27       // present, writable, user, accessed
#define PTE_PAGE_2M 0xe7     // the same, dirty, 2 MiB

#define TRAP_VECTORS 32  // the processor's exceptions
#define VECTOR_INVALID_OPCODE 6
#define VECTOR_TIMER 0x20     // local APIC timer
#define VECTOR_SPURIOUS 0x2f  // local APIC spurious interrupt; low four bits set, as old APICs want
#define LAPIC_BASE 0xfee00000
#define LAPIC_EOI 0xb0

#define STACK_BYTES 16384

#endif  // FVMM_GUESTS_BOOT_LAYOUT_H_
