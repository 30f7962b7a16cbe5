// u32 regs_spin(u64 deadline): gives every register that CPL 3 can write a known value and checks them all, over and
// over, until the TSC reaches the deadline. Returns 0, or the number (from 1) of the first register found wrong in the
// order of regs/main.c; what it held is then in regs_found.
#include "boot/layout.h"
#include "regs/layout.h"

#define FLAGS_SET 0x200400  // ID and direction: cmp leaves both alone
#define GENERAL_ROUNDS 64   // checks of the general registers for one of the rest

  .macro for_general macro
  .set index, 0
  .irp name, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rax
  \macro \name
  .set index, index + 1
  .endr
  .endm

  .macro load_general name
  mov regs_general + index * 8(%rip), %\name
  .endm

  .macro check_general name
  cmp regs_general + index * 8(%rip), %\name
  jne bad_\name
  .endm

  .macro bad_general name
bad_\name:
  mov %\name, regs_found(%rip)
  mov $index + 1, %eax
  jmp done
  .endm

// From here on rax is free, and `number` counts what is being checked.
  .macro expect_rax
  .set number, number + 1
  movl $number, current(%rip)
  jne bad_rax_other
  .endm

  .text
  .globl regs_spin
regs_spin:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rdi, deadline(%rip)
  mov %rsp, stack(%rip)
  fninit
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
  movq regs_mmx + \i * 8(%rip), %mm\i
  .endr
  fldcw x87_control(%rip)
  ldmxcsr mxcsr(%rip)
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
  movdqu regs_xmm + \i * 16(%rip), %xmm\i
  .endr
  pushfq
  orq $FLAGS_SET, (%rsp)
  popfq
  for_general load_general
again:
  .rept GENERAL_ROUNDS
  for_general check_general
  .endr
  .set number, 15
  cmp stack(%rip), %rsp
  mov %rsp, %rax
  expect_rax
  pushfq
  pop %rax
  and $FLAGS_SET, %eax
  cmp $FLAGS_SET, %eax
  expect_rax
  .irp name, ds, es, fs, gs
  mov %\name, %eax
  cmp $0, %ax
  expect_rax
  .endr
  mov %ss, %eax
  cmp $SEL_USER_DATA, %ax
  expect_rax
  mov %cs, %eax
  cmp $SEL_USER_CODE, %ax
  expect_rax
  mov %fs:0, %rax
  cmp fs_expected(%rip), %rax
  expect_rax
  mov %gs:0, %rax
  cmp gs_expected(%rip), %rax
  expect_rax
  stmxcsr scratch(%rip)
  mov scratch(%rip), %eax
  cmp mxcsr(%rip), %eax
  expect_rax
  fnstcw scratch(%rip)
  mov scratch(%rip), %ax
  cmp x87_control(%rip), %ax
  expect_rax
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7
  movq %mm\i, %rax
  cmp regs_mmx + \i * 8(%rip), %rax
  expect_rax
  .endr
  .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
  movdqu %xmm\i, scratch(%rip)
  mov scratch(%rip), %rax
  cmp regs_xmm + \i * 16(%rip), %rax
  expect_rax
  mov scratch + 8(%rip), %rax
  cmp regs_xmm + \i * 16 + 8(%rip), %rax
  .set number, number - 1  // both halves are one register
  expect_rax
  .endr
  rdtsc
  shl $32, %rdx
  or %rdx, %rax
  cmp deadline(%rip), %rax
  mov rax_value(%rip), %rax
  mov rdx_value(%rip), %rdx
  jb again
  xor %eax, %eax
  jmp done
  for_general bad_general
bad_rax_other:
  mov %rax, regs_found(%rip)
  mov current(%rip), %eax
done:
  mov stack(%rip), %rsp
  cld
  emms
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret

  .section .rodata
  .balign 16
regs_general:
  .quad 0xb1b1000000000001, 0xc1c1000000000002
rdx_value:
  .quad 0xd1d1000000000003, 0x5151000000000004, 0xd1d1000000000005, 0xb9b9000000000006
  .quad 0x0808000000000007, 0x0909000000000008, 0x1010000000000009, 0x111100000000000a
  .quad 0x121200000000000b, 0x131300000000000c, 0x141400000000000d, 0x151500000000000e
rax_value:
  .quad 0xa1a100000000000f
regs_mmx:
  .set index, 0
  .rept 8
  .quad 0x6d6d783837360000 + index * 0x0101
  .set index, index + 1
  .endr
regs_xmm:
  .set index, 0
  .rept 16
  .quad 0x786d6d5f6c6f7700 + index, 0x786d6d5f68696700 + index * 0x11
  .set index, index + 1
  .endr
fs_expected:
  .quad FS_WORD
gs_expected:
  .quad GS_WORD
mxcsr:
  .long MXCSR_VALUE
x87_control:
  .word X87_CONTROL

  .bss
  .balign 16
scratch:
  .skip 16
deadline:
  .skip 8
stack:
  .skip 8
current:
  .skip 8
  .globl regs_found
regs_found:
  .skip 8

  .section .note.GNU-stack, "", @progbits
