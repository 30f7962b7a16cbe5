// What each instruction of the table does (Intel SDM vol. 2A and 2B, under its name).
#include "vmm/instruction.h"

#include <bit>

namespace fvmm::vmm {
namespace {

constexpr std::uint64_t kCr0Mp = 1U << 1;
constexpr std::uint64_t kCr0Em = 1U << 2;
constexpr std::uint64_t kCr0Ts = 1U << 3;
constexpr std::uint64_t kCr4Osfxsr = 1U << 9;
constexpr std::uint64_t kFlagCf = 1U << 0;
constexpr std::uint64_t kFlagZf = 1U << 6;
constexpr std::uint64_t kFlagTf = 1U << 8;
constexpr std::uint64_t kFlagAc = 1U << 18;
constexpr std::uint64_t kFlagsArithmetic = kFlagCf | 1U << 2 | 1U << 4 | kFlagZf | 1U << 7 | 1U << 11;
constexpr std::uint16_t kStatusExceptionSummary = 1U << 7;
constexpr std::uint16_t kStatusClearedByFnclex = 0x80FF;  // exception flags, stack fault, summary, busy
constexpr std::uint32_t kMxcsrWritable = 0xFFFF;

std::uint64_t mask_of(unsigned bytes) {
  return bytes >= 8 ? ~std::uint64_t{0} : (std::uint64_t{1} << (8 * bytes)) - 1;
}

// A 32-bit result clears the upper half, a 16-bit one leaves it.
void set_register(Execution& execution, unsigned index, unsigned bytes, std::uint64_t value) {
  std::uint64_t& target = execution.registers.gpr[index];
  target = bytes == 2 ? (target & ~std::uint64_t{0xFFFF}) | (value & 0xFFFF) : value & mask_of(bytes);
}

void set_flag(Execution& execution, std::uint64_t flag, bool on) {
  execution.registers.rflags = (execution.registers.rflags & ~flag) | (on ? flag : 0);
}

void store(Execution& execution, std::uint64_t value) {
  execution.stored = value;
  execution.stores = true;
}

/// An x87 instruction that would raise #NM (lazy FPU switching) or #MF.
bool x87_faults(const Execution& execution, bool waits) {
  if ((execution.control.cr0 & (kCr0Em | kCr0Ts)) != 0) return true;
  return waits && (execution.floating.status & kStatusExceptionSummary) != 0;
}

bool fwait(const Execution& execution) {
  constexpr std::uint64_t kBoth = kCr0Mp | kCr0Ts;  // only together they fault here
  return (execution.control.cr0 & kBoth) != kBoth && (execution.floating.status & kStatusExceptionSummary) == 0;
}

bool fnstsw(const Instruction& instruction, Execution& execution) {
  if (x87_faults(execution, false)) return false;
  if (instruction.in_memory) {
    store(execution, execution.floating.status);
  } else {
    set_register(execution, 0, 2, execution.floating.status);
  }
  return true;
}

bool sse_faults(const Execution& execution) {
  return (execution.control.cr0 & (kCr0Em | kCr0Ts)) != 0 || (execution.control.cr4 & kCr4Osfxsr) == 0;
}

bool ldmxcsr(Execution& execution) {
  if (sse_faults(execution) || (execution.source & ~std::uint64_t{kMxcsrWritable}) != 0) return false;
  execution.floating.mxcsr = static_cast<std::uint32_t>(execution.source);
  return true;
}

bool stmxcsr(Execution& execution) {
  if (sse_faults(execution)) return false;
  store(execution, execution.floating.mxcsr);
  return true;
}

void popcnt(const Instruction& instruction, Execution& execution) {
  execution.registers.rflags &= ~kFlagsArithmetic;
  set_flag(execution, kFlagZf, execution.source == 0);
  set_register(execution, instruction.reg, instruction.operand_bytes,
               static_cast<std::uint64_t>(std::popcount(execution.source)));
}

/// CRC-32C, its polynomial reflected, as the instruction has it: no inversion before or after.
void crc32(const Instruction& instruction, Execution& execution) {
  constexpr std::uint32_t kPolynomial = 0x82F63B78;
  auto sum = static_cast<std::uint32_t>(execution.registers.gpr[instruction.reg]);
  for (unsigned byte = 0; byte < instruction.source_bytes; ++byte) {
    sum ^= static_cast<std::uint8_t>(execution.source >> (8 * byte));
    for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1) ^ ((sum & 1) != 0 ? kPolynomial : 0);
  }
  execution.registers.gpr[instruction.reg] = sum;
}

struct DescriptorView {
  explicit DescriptorView(std::uint64_t low) : low_(low) {}
  [[nodiscard]] unsigned type() const { return static_cast<unsigned>(low_ >> 40) & 0xF; }
  [[nodiscard]] bool segment() const { return (low_ >> 44 & 1) != 0; }  // code or data
  [[nodiscard]] unsigned dpl() const { return static_cast<unsigned>(low_ >> 45) & 3; }
  [[nodiscard]] bool code() const { return segment() && (type() & 8) != 0; }
  [[nodiscard]] bool conforming() const { return code() && (type() & 4) != 0; }
  [[nodiscard]] bool readable() const { return segment() && (!code() || (type() & 2) != 0); }
  [[nodiscard]] bool writable() const { return segment() && !code() && (type() & 2) != 0; }
  /// LDT, available and busy 64-bit TSS, and for LAR the call gate: what 64-bit mode knows of system types.
  [[nodiscard]] bool system_for_lsl() const { return !segment() && (type() == 2 || type() == 9 || type() == 11); }
  [[nodiscard]] bool system_for_lar() const { return system_for_lsl() || (!segment() && type() == 12); }
  [[nodiscard]] std::uint64_t limit() const {
    const std::uint64_t raw = (low_ & 0xFFFF) | (low_ >> 32 & 0xF0000);
    return (low_ >> 55 & 1) != 0 ? raw << 12 | 0xFFF : raw;
  }

 private:
  std::uint64_t low_;
};

/// At CPL 0 only the selector's own privilege can forbid it.
bool reachable(const DescriptorView& view, std::uint64_t selector) {
  return view.conforming() || view.dpl() >= (selector & 3);
}

void selector_instruction(const Instruction& instruction, Execution& execution) {
  const DescriptorView view(execution.descriptor.low);
  bool good = execution.descriptor.present_in_table && reachable(view, execution.source);
  std::uint64_t value = 0;
  switch (instruction.opcode) {
    case Opcode::kLar:
      good = good && (view.segment() || view.system_for_lar());
      value = execution.descriptor.low >> 32 & (instruction.operand_bytes == 2 ? 0xFF00U : 0x00F0FF00U);
      break;
    case Opcode::kLsl:
      good = good && (view.segment() || view.system_for_lsl());
      value = view.limit();
      break;
    case Opcode::kVerr:
      good = good && view.readable();
      break;
    default:
      good = good && view.writable();
      break;
  }
  set_flag(execution, kFlagZf, good);
  const bool loads = instruction.opcode == Opcode::kLar || instruction.opcode == Opcode::kLsl;
  if (loads && good) set_register(execution, instruction.reg, instruction.operand_bytes, value);
}

bool apply(const Instruction& instruction, Execution& execution) {
  switch (instruction.opcode) {
    case Opcode::kFwait:
      return fwait(execution);
    case Opcode::kFnclex:
      if (x87_faults(execution, false)) return false;
      execution.floating.status &= static_cast<std::uint16_t>(~kStatusClearedByFnclex);
      return true;
    case Opcode::kEmms:
      if (x87_faults(execution, true)) return false;
      execution.floating.tags = 0;
      return true;
    case Opcode::kFnstsw:
      return fnstsw(instruction, execution);
    case Opcode::kLdmxcsr:
      return ldmxcsr(execution);
    case Opcode::kStmxcsr:
      return stmxcsr(execution);
    case Opcode::kStac:
    case Opcode::kClac:
      set_flag(execution, kFlagAc, instruction.opcode == Opcode::kStac);
      return true;
    case Opcode::kPopcnt:
      popcnt(instruction, execution);
      return true;
    case Opcode::kCrc32:
      crc32(instruction, execution);
      return true;
    case Opcode::kLar:
    case Opcode::kLsl:
    case Opcode::kVerr:
    case Opcode::kVerw:
      selector_instruction(instruction, execution);
      return true;
    case Opcode::kClwb:
      return true;  // the operand has been reached: nothing else to see
  }
  return false;
}

}  // namespace

std::string_view name_of(Opcode opcode) {
  constexpr std::array<std::string_view, 15> kNames{"fwait",   "fnclex", "emms", "fnstsw", "ldmxcsr",
                                                    "stmxcsr", "stac",   "clac", "popcnt", "crc32",
                                                    "lar",     "lsl",    "verr", "verw",   "clwb"};
  return kNames[static_cast<std::size_t>(opcode)];
}

std::optional<std::uint64_t> register_operand(const Instruction& instruction, const GeneralRegisters& registers) {
  if (instruction.in_memory || instruction.source_bytes == 0) return std::nullopt;
  const std::uint64_t value = registers.gpr[instruction.rm] >> (instruction.high_byte ? 8 : 0);
  return value & mask_of(instruction.source_bytes);
}

bool execute(const Instruction& instruction, Execution& execution) {
  if ((execution.registers.rflags & kFlagTf) != 0) return false;  // a trap would be due behind it
  if (!apply(instruction, execution)) return false;
  execution.registers.rip += instruction.length;
  execution.registers.rflags &= ~(std::uint64_t{1} << 16);  // RF: every instruction that ends clears it
  return true;
}

}  // namespace fvmm::vmm
