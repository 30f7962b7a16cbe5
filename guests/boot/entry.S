// From the PVH entry (32-bit protected mode, flat segments, paging off, ebx = hvm_start_info) to guest_main(start_info)
// at CPL 3 in long mode. Everything that can be laid out by the linker is: on hosts that emulate CPL 0, each instruction
// here costs about 0.6 us. Source: Xen docs/misc/pvh.pandoc ("x86/HVM direct boot ABI"), Intel SDM vol. 3 ch. 10.8.5.
#include "boot/layout.h"

#define CR0_PE_MP_ET_NE_WP_PG 0x80010033
#define CR4_PAE_OSFXSR_OSXMMEXCPT 0x620
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define XEN_ELFNOTE_PHYS32_ENTRY 18

  .section .note.Xen, "a", @note
  .balign 4
  .long 4, 8, XEN_ELFNOTE_PHYS32_ENTRY
  .asciz "Xen"
  .quad pvh_start

  .text
  .code32
  .globl pvh_start
pvh_start:
  cli
  lgdt gdt_pointer
  mov $CR4_PAE_OSFXSR_OSXMMEXCPT, %eax
  mov %eax, %cr4
  mov $pml4, %eax
  mov %eax, %cr3
  mov $MSR_EFER, %ecx
  mov $EFER_LME, %eax
  xor %edx, %edx
  wrmsr
  mov $CR0_PE_MP_ET_NE_WP_PG, %eax
  mov %eax, %cr0
  ljmp $SEL_CODE64, $long_mode

  .code64
long_mode:
  mov $SEL_DATA, %eax
  mov %eax, %ss
  mov $kernel_stack_top, %rsp
  xor %eax, %eax  // long mode ignores these; null is what every host keeps at CPL 3
  mov %eax, %ds
  mov %eax, %es
  mov %eax, %fs
  mov %eax, %gs
  mov $tss, %eax  // the image is linked below 16 MiB, so the descriptor's top base byte stays 0
  mov %ax, gdt_tss + 2
  shr $16, %eax
  mov %al, gdt_tss + 4
  mov $SEL_TSS, %eax
  ltr %ax
  lidt idt_pointer
  call guest_setup_cpl0
  mov %ebx, %edi
  xor %eax, %eax
  xor %r14d, %r14d
  xor %r15d, %r15d
  pushq $SEL_USER_DATA
  pushq $user_stack_top
  pushq $2  // rflags: interrupts off; they are taken only while sleeping
  pushq $SEL_USER_CODE
  pushq $user_start
  iretq

user_start:  // CPL 3 from here on
  sub $8, %rsp
  call guest_main
  call guest_halt

// A guest's own CPL 0 work: before CPL 3, and for guest_call_cpl0. Weak: most have none.
  .weak guest_setup_cpl0
  .weak guest_service
guest_setup_cpl0:
guest_service:
  ret

// The ways from CPL 3 to CPL 0. Each is one UD2, known by its address: KVM-PVM answers int n with #UD, and syscall
// differs between hosts.

// void guest_halt(void): stops this vCPU.
  .globl guest_halt
guest_halt:
ud2_halt:
  ud2

// void guest_sleep(void): sleeps until the next interrupt.
  .globl guest_sleep
guest_sleep:
ud2_sleep:
  ud2
  ret

// u64 guest_call_cpl0(void): the answer of guest_service.
  .globl guest_call_cpl0
guest_call_cpl0:
ud2_service:
  ud2
  ret

// The gates' targets. Exceptions come first, 16 bytes each, all with the layout of struct trap_frame on the stack.
  .balign 16
  .globl trap_stubs
trap_stubs:
  .set vector, 0
  .rept TRAP_VECTORS
  .balign 16
  .if (0x60227d00 >> vector) & 1  // vectors that push an error code: 8, 10-14, 17, 21, 29, 30
  .else
  pushq $0
  .endif
  pushq $vector
  jmp trap_common
  .set vector, vector + 1
  .endr

trap_common:
  cld
  mov %rsp, %rdi
  mov %cr2, %rsi
  and $-16, %rsp
  call guest_fatal

halt:
  cli
1:
  hlt
  jmp 1b

  .globl gate_invalid_opcode
gate_invalid_opcode:
  cmpq $ud2_sleep, (%rsp)
  je sleep
  cmpq $ud2_service, (%rsp)
  je service
  cmpq $ud2_halt, (%rsp)
  je halt
  jmp trap_stubs + 6 * 16

sleep:
  addq $2, (%rsp)
  sti
  hlt
  cli
  iretq

service:
  addq $2, (%rsp)
  call guest_service
  iretq

  .globl gate_timer
gate_timer:
  push %rax
  mov $LAPIC_BASE + LAPIC_EOI, %eax
  movl $0, (%rax)
  pop %rax
  .globl gate_ignore
gate_ignore:
  iretq

  .section .data.pages, "aw"
// Identity map. The first GiB is complete; the C code fills the other directories before it touches what they map.
  .balign 4096
pml4:
  .quad pdpt + PTE_TABLE
  .fill 511, 8, 0
pdpt:
  .quad pd_first_gib + PTE_TABLE
  .set index, 1
  .rept PAGE_DIRECTORIES - 1
  .quad page_directories + index * 4096 + PTE_TABLE
  .set index, index + 1
  .endr
  .fill 512 - PAGE_DIRECTORIES, 8, 0
pd_first_gib:
  .set index, 0
  .rept 512
  .quad index * 0x200000 + PTE_PAGE_2M
  .set index, index + 1
  .endr

  .data
  .balign 16
gdt:
  .quad 0
  .quad 0x00af9b000000ffff  // SEL_CODE64
  .quad 0x00cf93000000ffff  // SEL_DATA
  .quad 0, 0
  .quad 0x00cff3000000ffff  // SEL_USER_DATA
  .quad 0x00affb000000ffff  // SEL_USER_CODE
  .quad 0
gdt_tss:
  .quad 0x0000890000000000 + (tss_limit & 0xffff)
  .quad 0
gdt_pointer:
  .word gdt_pointer - gdt - 1
  .quad gdt
idt_pointer:
  .word 256 * 16 - 1
  .quad guest_idt

// The I/O bitmap is all zero: every port is open to CPL 3, where IOPL would need rflags that not every host keeps.
  .balign 16
tss:
  .long 0
  .quad kernel_stack_top
  .fill 90, 1, 0
  .word tss_bitmap - tss
tss_bitmap:
  .fill 8192, 1, 0
  .byte 0xff
  .set tss_limit, . - tss - 1

  .section .bss.pages, "aw", @nobits
  .balign 4096
  .globl page_directories
page_directories:
  .skip PAGE_DIRECTORIES * 4096  // number 0 is unused: pd_first_gib stands for it
  .globl guest_idt
guest_idt:
  .skip 256 * 16
  .skip STACK_BYTES
kernel_stack_top:
  .skip STACK_BYTES
user_stack_top:

  .section .note.GNU-stack, "", @progbits
