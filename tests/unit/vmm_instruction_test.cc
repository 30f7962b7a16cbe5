// Decoding and results of the instructions that the VMM completes: each one, its edges, and its neighbours that must be
// refused. Encodings are an assembler's.
#include "vmm/instruction.h"

#include <gtest/gtest.h>

#include <vector>

namespace fvmm::vmm {
namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr std::uint64_t kRip = 0xffffffff81000000;
constexpr std::uint64_t kZf = 0x40;
constexpr std::uint64_t kArithmetic = 0x8d5;

enum Index { kRax, kRcx, kRdx, kRbx, kRsp, kRbp, kRsi, kRdi, kR8, kR9, kR12 = 12, kR13, kR15 = 15 };

GeneralRegisters some_registers() {
  GeneralRegisters r;
  for (unsigned i = 0; i < 16; ++i) r.gpr[i] = 0xffff888000000000 + 0x1000 * i;
  r.rip = kRip;
  r.rflags = 0x2;
  r.fs_base = 0x7000;
  r.gs_base = 0xffff888010000000;
  return r;
}

Execution some_execution() {
  Execution e;
  e.registers = some_registers();
  e.control = {.cr0 = 0x80050033, .cr4 = 0x6b0};  // Linux's: MP, NE, WP; OSFXSR
  return e;
}

/// Decodes at some_registers(), which must succeed and use all bytes.
Instruction decoded(const Bytes& code) {
  const auto instruction = decode(code, some_registers());
  EXPECT_TRUE(instruction) << "refused";
  if (!instruction) return {};
  EXPECT_EQ(instruction->length, code.size());
  return *instruction;
}
bool refused(const Bytes& code) {
  return !decode(code, some_registers());
}

TEST(InstructionDecode, EachOfTheTable) {
  const struct {
    Bytes code;
    Opcode opcode;
  } all[] = {
      {{0x9b}, Opcode::kFwait},
      {{0xdb, 0xe2}, Opcode::kFnclex},
      {{0x0f, 0x77}, Opcode::kEmms},
      {{0xdf, 0xe0}, Opcode::kFnstsw},
      {{0xdd, 0x38}, Opcode::kFnstsw},               // fnstsw (%rax)
      {{0x0f, 0xae, 0x10}, Opcode::kLdmxcsr},        // ldmxcsr (%rax)
      {{0x0f, 0xae, 0x1c, 0x24}, Opcode::kStmxcsr},  // stmxcsr (%rsp)
      {{0x0f, 0x01, 0xcb}, Opcode::kStac},
      {{0x0f, 0x01, 0xca}, Opcode::kClac},
      {{0xf3, 0x48, 0x0f, 0xb8, 0xc7}, Opcode::kPopcnt},       // popcnt %rdi,%rax
      {{0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc7}, Opcode::kCrc32},  // crc32q %rdi,%rax
      {{0x0f, 0x02, 0xc7}, Opcode::kLar},                      // lar %edi,%eax
      {{0x0f, 0x03, 0xc7}, Opcode::kLsl},                      // lsl %edi,%eax
      {{0x0f, 0x00, 0xe7}, Opcode::kVerr},                     // verr %di
      {{0x0f, 0x00, 0x2d, 0, 0, 0, 0}, Opcode::kVerw},         // verw 0(%rip)
      {{0x66, 0x0f, 0xae, 0x37}, Opcode::kClwb},               // clwb (%rdi)
  };
  for (const auto& one : all) EXPECT_EQ(decoded(one.code).opcode, one.opcode) << name_of(one.opcode);
}

TEST(InstructionDecode, NeighboursAreRefused) {
  const Bytes all[] = {
      {0x90},                          // nop
      {0xdb, 0xe3},                    // fninit
      {0xdb, 0x00},                    // fild
      {0xdf, 0x38},                    // fistpll
      {0xdd, 0x30},                    // fnsave
      {0xdd, 0xff},                    // no instruction
      {0x66, 0x0f, 0x77},              // no instruction
      {0xf3, 0x0f, 0x01, 0xcb},        // no instruction
      {0x0f, 0x01, 0xd0},              // xgetbv
      {0x0f, 0x01, 0xc8},              // monitor
      {0x0f, 0x01, 0xf9},              // rdtscp
      {0x0f, 0x00, 0xd8},              // ltr
      {0x0f, 0x00, 0xc0},              // sldt
      {0x0f, 0xb8, 0xc7},              // popcnt without F3
      {0xf2, 0x0f, 0xb8, 0xc7},        // likewise
      {0xf3, 0x0f, 0xb9, 0xc7},        // ud1
      {0x0f, 0xae, 0x20},              // xsave
      {0x0f, 0xae, 0x28},              // xrstor
      {0x0f, 0xae, 0x30},              // xsaveopt
      {0x0f, 0xae, 0x38},              // clflush
      {0x0f, 0xae, 0x00},              // fxsave
      {0x66, 0x0f, 0xae, 0x38},        // clflushopt
      {0x66, 0x0f, 0xae, 0xf0},        // tpause: a register in CLWB's place
      {0xf3, 0x0f, 0xae, 0xd0},        // wrfsbase: a register in LDMXCSR's place
      {0x0f, 0xae, 0xe8},              // lfence
      {0xf3, 0x0f, 0xae, 0x10},        // no instruction
      {0x0f, 0x38, 0xf0, 0x00},        // movbe
      {0x66, 0x0f, 0x38, 0xf6, 0xc0},  // adcx
      {0xf2, 0x0f, 0x38, 0xf2, 0xc0},  // no instruction
      {0x0f, 0xc7, 0x08},              // cmpxchg8b
      {0x48, 0x0f, 0xc7, 0x08},        // cmpxchg16b
      {0x0f, 0x05},                    // syscall
      {0xcc},                          // int3
      {0xc5, 0xf8, 0xae, 0x10},        // vldmxcsr
      {0xf0, 0x0f, 0xae, 0x10},        // lock
      {0xf0, 0xf3, 0x0f, 0xb8, 0xc7},  // lock
      {0x48, 0xf3, 0x0f, 0xb8, 0xc7},  // a prefix behind REX
      {0x48, 0x48, 0x0f, 0xb8, 0xc7},  // two REX
  };
  for (const Bytes& code : all) {
    EXPECT_TRUE(refused(code)) << std::hex << +code[0] << " " << +code.back();
  }
}

TEST(InstructionDecode, EveryPrefixOfAnEncodingIsRefused) {
  const Bytes whole[] = {{0xf3, 0x49, 0x0f, 0xb8, 0x84, 0xe4, 1, 2, 3, 4},
                         {0xf2, 0x66, 0x41, 0x0f, 0x38, 0xf1, 0x45, 8},
                         {0x0f, 0x00, 0x2d, 1, 2, 3, 4},
                         {0xdb, 0xe2}};
  for (const Bytes& code : whole) {
    (void)decoded(code);
    for (std::size_t bytes = 0; bytes < code.size(); ++bytes) {
      EXPECT_TRUE(refused({code.begin(), code.begin() + static_cast<std::ptrdiff_t>(bytes)})) << bytes;
    }
  }
}

TEST(InstructionDecode, FifteenBytesAreTheLimit) {
  Bytes code(14, 0x2e);
  code.push_back(0x9b);
  EXPECT_EQ(decoded(code).length, kInstructionBytesMax);
  code.insert(code.begin(), 0x2e);
  EXPECT_TRUE(refused(code));
}

TEST(InstructionDecode, AddressesOfEachForm) {
  const GeneralRegisters r = some_registers();
  const struct {
    Bytes operand;  // behind F3 0F B8
    std::uint64_t address;
  } all[] = {
      {{0x07}, r.gpr[kRdi]},                                       // (%rdi)
      {{0x47, 0xf8}, r.gpr[kRdi] - 8},                             // -8(%rdi)
      {{0x87, 0x00, 0x00, 0x00, 0x80}, r.gpr[kRdi] - 0x80000000},  // -0x80000000(%rdi)
      {{0x05, 0x10, 0, 0, 0}, kRip + 8 + 0x10},                    // 0x10(%rip)
      {{0x04, 0x24}, r.gpr[kRsp]},                                 // (%rsp)
      {{0x45, 0x00}, r.gpr[kRbp]},                                 // 0(%rbp)
      {{0x04, 0x25, 0x00, 0x10, 0, 0}, 0x1000},                    // 0x1000
      {{0x04, 0x25, 0x00, 0x00, 0, 0x80}, 0xffffffff80000000},     // sign-extended
      {{0x44, 0x24, 0x7f}, r.gpr[kRsp] + 0x7f},                    // 0x7f(%rsp)
  };
  for (const auto& one : all) {
    Bytes code{0xf3, 0x0f, 0xb8};
    code.insert(code.end(), one.operand.begin(), one.operand.end());
    const Instruction instruction = decoded(code);
    EXPECT_TRUE(instruction.in_memory);
    EXPECT_EQ(instruction.address, one.address) << std::hex << +one.operand[0];
  }
}

TEST(InstructionDecode, ScaledIndexWithRexReachesAllRegisters) {
  GeneralRegisters r = some_registers();
  r.gpr[kR9] = 0x10;
  // popcnt 4(%r12,%r9,8),%r15
  const Bytes code{0xf3, 0x4f, 0x0f, 0xb8, 0x7c, 0xcc, 0x04};
  const auto instruction = decode(code, r);
  ASSERT_TRUE(instruction);
  EXPECT_EQ(instruction->address, r.gpr[kR12] + 0x80 + 4);
  EXPECT_EQ(instruction->reg, 15U);
  EXPECT_EQ(instruction->operand_bytes, 8U);
  // (,%r12,2): index 4 with REX.X is r12, not "none"
  r.gpr[kR12] = 0x800;
  const auto with_r12 = decode(Bytes{0xf3, 0x42, 0x0f, 0xb8, 0x04, 0x65, 0, 0, 0, 0}, r);
  ASSERT_TRUE(with_r12);
  EXPECT_EQ(with_r12->address, 0x1000U);
  // 0(%r13): mod 1, since mod 0 means RIP also with REX.B
  const auto relative = decode(Bytes{0xf3, 0x41, 0x0f, 0xb8, 0x05, 0, 0, 0, 0}, r);
  ASSERT_TRUE(relative);
  EXPECT_EQ(relative->address, kRip + 9);
}

TEST(InstructionDecode, SegmentBasesAndAddressSize) {
  const GeneralRegisters r = some_registers();
  EXPECT_EQ(decoded({0x65, 0xf3, 0x0f, 0xb8, 0x04, 0x25, 0x08, 0, 0, 0}).address, r.gs_base + 8);
  EXPECT_EQ(decoded({0x64, 0xf3, 0x0f, 0xb8, 0x04, 0x25, 0x08, 0, 0, 0}).address, r.fs_base + 8);
  EXPECT_EQ(decoded({0x2e, 0xf3, 0x0f, 0xb8, 0x07}).address, r.gpr[kRdi]) << "CS has no base in 64-bit mode";
  EXPECT_EQ(decoded({0x67, 0xf3, 0x0f, 0xb8, 0x07}).address, r.gpr[kRdi] & 0xffffffff);
}

TEST(InstructionDecode, NonCanonicalAddressesAreRefused) {
  GeneralRegisters r = some_registers();
  const Bytes code{0xf3, 0x48, 0x0f, 0xb8, 0x07};
  r.gpr[kRdi] = 0x00007ffffffffff8;
  EXPECT_TRUE(decode(code, r));
  r.gpr[kRdi] = 0x00007ffffffffff9;
  EXPECT_FALSE(decode(code, r)) << "its last byte is not";
  r.gpr[kRdi] = 0x0000800000000000;
  EXPECT_FALSE(decode(code, r));
  r.gpr[kRdi] = 0xffff800000000000;
  EXPECT_TRUE(decode(code, r));
}

TEST(InstructionDecode, ByteRegistersWithAndWithoutRex) {
  const Instruction high = decoded({0xf2, 0x0f, 0x38, 0xf0, 0xc4});  // crc32b %ah,%eax
  EXPECT_TRUE(high.high_byte);
  EXPECT_EQ(high.rm, 0U);
  const Instruction low = decoded({0xf2, 0x40, 0x0f, 0x38, 0xf0, 0xc4});  // crc32b %spl,%eax
  EXPECT_FALSE(low.high_byte);
  EXPECT_EQ(low.rm, 4U);
  GeneralRegisters r = some_registers();
  r.gpr[kRax] = 0xabcd;
  EXPECT_EQ(register_operand(high, r), 0xabU);
}

/// Runs register forms: the source is what the encoding names.
Execution executed(const Bytes& code, Execution before) {
  const auto instruction = decode(code, before.registers);
  EXPECT_TRUE(instruction);
  if (!instruction) return before;
  if (const auto operand = register_operand(*instruction, before.registers)) before.source = *operand;
  EXPECT_TRUE(execute(*instruction, before));
  EXPECT_EQ(before.registers.rip, kRip + code.size());
  return before;
}
/// Whether it is decoded and then not carried out, with nothing changed.
bool declined(const Bytes& code, const Execution& before) {
  const auto instruction = decode(code, before.registers);
  EXPECT_TRUE(instruction);
  Execution after = before;
  const bool done = execute(*instruction, after);
  EXPECT_EQ(after.registers.gpr, before.registers.gpr);
  EXPECT_EQ(after.registers.rip, before.registers.rip);
  EXPECT_EQ(after.registers.rflags, before.registers.rflags);
  EXPECT_EQ(after.floating, before.floating);
  EXPECT_FALSE(after.stores);
  return !done;
}

TEST(InstructionExecute, PopcntOfEachSize) {
  Execution e = some_execution();
  e.registers.gpr[kRdi] = 0xf000000080000003;
  e.registers.gpr[kRax] = 0xffffffffffffffff;
  e.registers.rflags |= kArithmetic;
  EXPECT_EQ(executed({0xf3, 0x48, 0x0f, 0xb8, 0xc7}, e).registers.gpr[kRax], 7U);
  EXPECT_EQ(executed({0xf3, 0x0f, 0xb8, 0xc7}, e).registers.gpr[kRax], 3U) << "32 bits clear the upper half";
  EXPECT_EQ(executed({0x66, 0xf3, 0x0f, 0xb8, 0xc7}, e).registers.gpr[kRax], 0xffffffffffff0002);
  EXPECT_EQ(executed({0xf3, 0x0f, 0xb8, 0xc7}, e).registers.rflags & kArithmetic, 0U);
  e.registers.gpr[kRdi] = 0xffffffff00000000;
  EXPECT_EQ(executed({0xf3, 0x0f, 0xb8, 0xc7}, e).registers.rflags & kArithmetic, kZf) << "of the 32 bits";
}

TEST(InstructionExecute, Crc32cOfKnownText) {
  // The check value of CRC-32C, of "123456789", with the usual inversions: RFC 3720, appendix B.4's algorithm.
  Execution e = some_execution();
  e.registers.gpr[kRax] = 0xffffffff;
  for (const char c : std::string("123456789")) {
    e.registers.gpr[kRdi] = static_cast<std::uint8_t>(c);
    e.registers.rip = kRip;
    e = executed({0xf2, 0x40, 0x0f, 0x38, 0xf0, 0xc7}, e);
  }
  EXPECT_EQ(e.registers.gpr[kRax] ^ 0xffffffff, 0xe3069283U);
  Execution quad = some_execution();
  quad.registers.gpr[kRax] = 0xdeadbeefffffffff;
  quad.registers.gpr[kRdi] = 0x3837363534333231;
  quad = executed({0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xc7}, quad);
  quad.registers.gpr[kRdi] = '9';
  quad.registers.rip = kRip;
  quad = executed({0xf2, 0x40, 0x0f, 0x38, 0xf0, 0xc7}, quad);
  EXPECT_EQ(quad.registers.gpr[kRax], 0xe3069283U ^ 0xffffffffU) << "eight bytes at once, upper half cleared";
}

TEST(InstructionExecute, FloatingPointControl) {
  Execution e = some_execution();
  e.floating = {.control = 0x37f, .status = 0xb8ff & ~0x80, .tags = 0xff, .mxcsr = 0x1f80};
  EXPECT_EQ(executed({0xdb, 0xe2}, e).floating.status, 0x3800) << "TOP and the conditions stay";
  EXPECT_EQ(executed({0x0f, 0x77}, e).floating.tags, 0);
  e.registers.gpr[kRax] = 0x1111111111111111;
  EXPECT_EQ(executed({0xdf, 0xe0}, e).registers.gpr[kRax], 0x111111111111b87f);
  e.registers.gpr[kRax] = 0xffff888000000000;
  const Execution stored = executed({0xdd, 0x38}, e);
  EXPECT_TRUE(stored.stores);
  EXPECT_EQ(stored.stored, 0xb87fU);
  EXPECT_EQ(executed({0x9b}, e).floating, e.floating);
}

TEST(InstructionExecute, PendingFloatingPointFaultsAreDeclined) {
  const Bytes fwait{0x9b}, fnclex{0xdb, 0xe2}, emms{0x0f, 0x77}, fnstsw{0xdf, 0xe0};
  Execution pending = some_execution();
  pending.floating.status = 0x80;
  EXPECT_TRUE(declined(fwait, pending));
  EXPECT_TRUE(declined(emms, pending));
  EXPECT_EQ(executed(fnclex, pending).floating.status, 0) << "this one clears it";
  EXPECT_EQ(executed(fnstsw, pending).registers.gpr[kRax] & 0xffff, 0x80U);
  Execution lazy = some_execution();
  lazy.control.cr0 |= 8;  // TS
  for (const Bytes& code : {fwait, fnclex, emms, fnstsw}) EXPECT_TRUE(declined(code, lazy)) << +code[0];
  lazy.control.cr0 &= ~2ULL;  // MP
  EXPECT_EQ(executed(fwait, lazy).registers.rip, kRip + 1) << "FWAIT faults only with MP and TS";
  Execution emulated = some_execution();
  emulated.control.cr0 |= 4;  // EM
  for (const Bytes& code : {fnclex, emms, fnstsw}) EXPECT_TRUE(declined(code, emulated)) << +code[0];
}

TEST(InstructionExecute, Mxcsr) {
  const Bytes load{0x0f, 0xae, 0x10}, save{0x0f, 0xae, 0x18};
  Execution e = some_execution();
  e.source = 0xffff;
  EXPECT_EQ(executed(load, e).floating.mxcsr, 0xffffU);
  e.floating.mxcsr = 0x9fc0;
  const Execution stored = executed(save, e);
  EXPECT_TRUE(stored.stores);
  EXPECT_EQ(stored.stored, 0x9fc0U);
  e.source = 0x10000;
  EXPECT_TRUE(declined(load, e)) << "a reserved bit is #GP";
  e.source = 0x1f80;
  for (const auto& [cr0, cr4] :
       {std::pair(0x8005003bULL, 0x6b0ULL), {0x80050037ULL, 0x6b0ULL}, {0x80050033ULL, 0x4b0ULL}}) {
    e.control = {.cr0 = cr0, .cr4 = cr4};
    EXPECT_TRUE(declined(load, e)) << std::hex << cr0 << " " << cr4;
    EXPECT_TRUE(declined(save, e)) << std::hex << cr0 << " " << cr4;
  }
}

TEST(InstructionExecute, AccessFlag) {
  constexpr std::uint64_t kAc = 1U << 18;
  Execution e = some_execution();
  e.registers.rflags |= kZf;
  const Execution set = executed({0x0f, 0x01, 0xcb}, e);
  EXPECT_EQ(set.registers.rflags, 0x2 | kZf | kAc);
  Execution again = set;
  again.registers.rip = kRip;
  EXPECT_EQ(executed({0x0f, 0x01, 0xca}, again).registers.rflags, 0x2 | kZf);
}

TEST(InstructionExecute, SingleSteppingIsDeclined) {
  Execution e = some_execution();
  e.registers.rflags |= 0x100;
  EXPECT_TRUE(declined({0x0f, 0x01, 0xcb}, e));
}

TEST(InstructionExecute, ResumeFlagEndsWithTheInstruction) {
  Execution e = some_execution();
  e.registers.rflags |= 1U << 16;
  EXPECT_EQ(executed({0x9b}, e).registers.rflags, 0x2U);
}

constexpr std::uint64_t kCode64 = 0x00af9b000000ffff;    // limit 4 GiB, DPL 0, readable
constexpr std::uint64_t kUserData = 0x00cff3000000ffff;  // DPL 3, writable
constexpr std::uint64_t kReadOnly = 0x00cf91000000ffff;  // data, not writable

Execution with_selector(std::uint64_t selector, std::uint64_t descriptor) {
  Execution e = some_execution();
  e.registers.gpr[kRdi] = selector;
  e.registers.gpr[kRax] = 0x1111111111111111;
  e.descriptor = {.present_in_table = true, .low = descriptor};
  return e;
}

TEST(InstructionExecute, LarAndLsl) {
  const Bytes lar{0x0f, 0x02, 0xc7}, lar16{0x66, 0x0f, 0x02, 0xc7}, lsl{0x0f, 0x03, 0xc7};
  const Execution code = executed(lar, with_selector(0x10, kCode64));
  EXPECT_EQ(code.registers.gpr[kRax], 0xa09b00U);
  EXPECT_EQ(code.registers.rflags & kZf, kZf);
  EXPECT_EQ(executed(lar16, with_selector(0x10, kCode64)).registers.gpr[kRax], 0x1111111111119b00U);
  EXPECT_EQ(executed(lsl, with_selector(0x10, kCode64)).registers.gpr[kRax], 0xffffffffU) << "in pages";
  EXPECT_EQ(executed(lsl, with_selector(0x10, 0x000a93000000fffe)).registers.gpr[kRax], 0xafffeU) << "in bytes";

  for (const Bytes& code_of : {lar, lsl}) {
    Execution null = with_selector(0, 0);
    null.descriptor = {};
    null.registers.rflags |= kZf;
    const Execution after = executed(code_of, null);
    EXPECT_EQ(after.registers.rflags & kZf, 0U);
    EXPECT_EQ(after.registers.gpr[kRax], 0x1111111111111111U) << "left as it was";
    EXPECT_EQ(executed(code_of, with_selector(0x13, kCode64)).registers.rflags & kZf, 0U) << "RPL 3 is below DPL 0";
    EXPECT_EQ(executed(code_of, with_selector(0x2b, kUserData)).registers.rflags & kZf, kZf);
  }
  EXPECT_EQ(executed(lar, with_selector(0x13, 0x00af9e000000ffff)).registers.rflags & kZf, kZf) << "conforming";
}

TEST(InstructionExecute, LarAndLslOfSystemDescriptors) {
  const auto good = [](std::uint8_t opcode, std::uint64_t type) {
    return (executed({0x0f, opcode, 0xc7}, with_selector(0x40, type << 40 | std::uint64_t{1} << 47)).registers.rflags &
            kZf) != 0;
  };
  for (std::uint64_t type = 0; type < 16; ++type) {
    const bool segment_like = type == 2 || type == 9 || type == 11;
    EXPECT_EQ(good(0x03, type), segment_like) << "lsl, type " << type;
    EXPECT_EQ(good(0x02, type), segment_like || type == 12) << "lar, type " << type;
  }
}

TEST(InstructionExecute, VerrAndVerw) {
  const Bytes verr{0x0f, 0x00, 0xe7}, verw{0x0f, 0x00, 0xef};
  const auto good = [](const Bytes& code, const Execution& e) {
    return (executed(code, e).registers.rflags & kZf) != 0;
  };
  EXPECT_TRUE(good(verr, with_selector(0x10, kCode64)));
  EXPECT_FALSE(good(verr, with_selector(0x10, 0x00af99000000ffff))) << "execute-only";
  EXPECT_FALSE(good(verw, with_selector(0x10, kCode64)));
  EXPECT_TRUE(good(verw, with_selector(0x2b, kUserData)));
  EXPECT_FALSE(good(verw, with_selector(0x18, kReadOnly)));
  EXPECT_TRUE(good(verr, with_selector(0x18, kReadOnly)));
  EXPECT_FALSE(good(verr, with_selector(0x40, 0x0000890000000067))) << "a TSS";
}

}  // namespace
}  // namespace fvmm::vmm
