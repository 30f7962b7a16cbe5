// The registers that only CPL 0 can set and read. Kept to a minimum: each instruction may be emulated.
#include "boot/layout.h"
#include "regs/layout.h"

#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_EFER 0xc0000080
#define MSR_PAT 0x277
#define EFER_LMA_LME 0x500

  .macro write_msr number, low, high
  mov $\number, %ecx
  mov $\low, %eax
  mov $\high, %edx
  wrmsr
  .endm

  .macro check value, expected, bit
  mov $\expected, %rdx
  mov $1 << \bit, %ecx
  cmp %rdx, \value
  je 1f
  or %rcx, %rbx
1:
  .endm

  .macro check_msr number, expected, bit
  mov $\number, %ecx
  rdmsr
  shl $32, %rdx
  or %rdx, %rax
  check %rax, \expected, \bit
  .endm

  .text
  .globl guest_setup_cpl0
guest_setup_cpl0:  // keeps rbx: the start info
  write_msr MSR_FS_BASE, fs_word, 0
  write_msr MSR_GS_BASE, gs_word, 0
  write_msr MSR_KERNEL_GS_BASE, (KERNEL_GS_VALUE & 0xffffffff), (KERNEL_GS_VALUE >> 32)
  write_msr MSR_STAR, 0, STAR_HIGH
  write_msr MSR_LSTAR, LSTAR_VALUE, 0
  write_msr MSR_SFMASK, SFMASK_VALUE, 0
  write_msr MSR_PAT, PAT_LOW, PAT_HIGH
  mov $DR0_VALUE, %eax
  mov %rax, %dr0
  mov $DR1_VALUE, %eax
  mov %rax, %dr1
  mov $DR2_VALUE, %eax
  mov %rax, %dr2
  mov $DR3_VALUE, %eax
  mov %rax, %dr3
  ret

// Answers in rax with one bit for each register that is wrong. Changes rcx and rdx.
  .globl guest_service
guest_service:
  push %rbx
  xor %ebx, %ebx
  mov %cr0, %rax
  check %rax, CR0_VALUE, BAD_CR0
  mov %cr4, %rax
  check %rax, CR4_VALUE, BAD_CR4
  mov %dr0, %rax
  check %rax, DR0_VALUE, BAD_DR0
  mov %dr1, %rax
  check %rax, DR1_VALUE, BAD_DR1
  mov %dr2, %rax
  check %rax, DR2_VALUE, BAD_DR2
  mov %dr3, %rax
  check %rax, DR3_VALUE, BAD_DR3
  check_msr MSR_EFER, EFER_LMA_LME, BAD_EFER
  check_msr MSR_FS_BASE, fs_word, BAD_FS_BASE
  check_msr MSR_GS_BASE, gs_word, BAD_GS_BASE
  check_msr MSR_KERNEL_GS_BASE, KERNEL_GS_VALUE, BAD_KERNEL_GS
  check_msr MSR_STAR, (STAR_HIGH << 32), BAD_STAR
  check_msr MSR_LSTAR, LSTAR_VALUE, BAD_LSTAR
  check_msr MSR_SFMASK, SFMASK_VALUE, BAD_SFMASK
  check_msr MSR_PAT, (PAT_HIGH << 32 | PAT_LOW), BAD_PAT
  mov %rbx, %rax
  pop %rbx
  ret

  .data
  .balign 8
fs_word:
  .quad FS_WORD
gs_word:
  .quad GS_WORD

  .section .note.GNU-stack, "", @progbits
