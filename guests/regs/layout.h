// What the register guest puts where; shared by its C and assembly code.
#ifndef FVMM_GUESTS_REGS_LAYOUT_H_
#define FVMM_GUESTS_REGS_LAYOUT_H_

#define FS_WORD 0x46535f6d61676963  // the words that the fs and gs bases point at
#define GS_WORD 0x47535f6d61676963
#define KERNEL_GS_VALUE 0x00005a5a12345000  // never dereferenced
#define LSTAR_VALUE 0x0000000000abc000
#define STAR_HIGH 0x001b0008
#define SFMASK_VALUE 0x00047700
#define PAT_LOW 0x00010406  // write-back first: what the image runs on
#define PAT_HIGH 0x00070605

#define DR0_VALUE 0x0000000000f00000
#define DR1_VALUE 0x0000000000f10000
#define DR2_VALUE 0x0000000000f20000
#define DR3_VALUE 0x0000000000f30000
#define CR0_VALUE 0x80010033
#define CR4_VALUE 0x620

#define MXCSR_VALUE 0x9f80  // all masked, flush to zero
#define X87_CONTROL 0x0a7f  // all masked, double precision, round up

// Bits of the answer of guest_service: which CPL 0 register was wrong.
#define BAD_CR0 0
#define BAD_CR4 1
#define BAD_DR0 2
#define BAD_DR1 3
#define BAD_DR2 4
#define BAD_DR3 5
#define BAD_EFER 6
#define BAD_FS_BASE 7
#define BAD_GS_BASE 8
#define BAD_KERNEL_GS 9
#define BAD_STAR 10
#define BAD_LSTAR 11
#define BAD_SFMASK 12
#define BAD_PAT 13
#define KERNEL_REGISTERS 14

#endif  // FVMM_GUESTS_REGS_LAYOUT_H_
