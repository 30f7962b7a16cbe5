// The interrupt table. It is filled at CPL 3, since on hosts that emulate CPL 0 that is the fast place.
#include "boot/layout.h"
#include "lib/serial.h"

struct gate {
  u16 offset_low, selector;
  u8 stack, type;
  u16 offset_middle;
  u32 offset_high, reserved;
};

/// What trap_stubs leave on the stack.
struct trap_frame {
  u64 vector, error, rip, cs, rflags, rsp, ss;
};

#define INTERRUPT_GATE 0x8e  // present, interrupt gate

extern struct gate guest_idt[256];
extern u8 trap_stubs[], gate_invalid_opcode[], gate_timer[], gate_ignore[];

static void set_gate(u32 vector, const u8* target) {
  const u64 offset = (u64)target;
  guest_idt[vector] = (struct gate){.offset_low = (u16)offset,
                                    .selector = SEL_CODE64,
                                    .type = INTERRUPT_GATE,
                                    .offset_middle = (u16)(offset >> 16),
                                    .offset_high = (u32)(offset >> 32)};
}

void idt_init(void);
void idt_init(void) {
  for (u32 i = 0; i < TRAP_VECTORS; ++i) set_gate(i, trap_stubs + i * 16);
  set_gate(VECTOR_INVALID_OPCODE, gate_invalid_opcode);
  set_gate(VECTOR_TIMER, gate_timer);
  set_gate(VECTOR_SPURIOUS, gate_ignore);
}

/// Called by the stubs, at CPL 0; the stub halts when it returns.
void guest_fatal(const struct trap_frame* frame, u64 cr2);
void guest_fatal(const struct trap_frame* frame, u64 cr2) {
  struct line line;
  line_start(&line, "FATAL");
  line_field(&line, "vector", frame->vector);
  line_text(&line, " error=");
  line_hex(&line, frame->error);
  line_text(&line, " rip=");
  line_hex(&line, frame->rip);
  line_text(&line, " cr2=");
  line_hex(&line, cr2);
  line_print(&line);
}
