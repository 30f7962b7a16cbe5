// The instructions that the VMM completes where KVM's emulator gives up: decoding and, for those that touch registers
// only, their result. Pure. docs/vmm.md has the table with what is left out and why.
//
// Only 64-bit code at CPL 0, and only the plain case: whatever would fault, trap or depend on more state than is given
// here is refused, and the guest fails as it does without this.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace fvmm::vmm {

inline constexpr std::size_t kInstructionBytesMax = 15;  // Intel SDM vol. 2A, 2.3.11

enum class Opcode {
  kFwait,
  kFnclex,
  kEmms,
  kFnstsw,
  kLdmxcsr,
  kStmxcsr,
  kStac,
  kClac,
  kPopcnt,
  kCrc32,
  kLar,
  kLsl,
  kVerr,
  kVerw,
  kClwb,
};

/// Name as an assembler writes it.
std::string_view name_of(Opcode opcode);

/// General registers in the order of their encoding: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
struct GeneralRegisters {
  std::array<std::uint64_t, 16> gpr{};
  std::uint64_t rip = 0;
  std::uint64_t rflags = 0;
  std::uint64_t fs_base = 0;
  std::uint64_t gs_base = 0;
};

struct Instruction {
  Opcode opcode{};
  unsigned length = 0;         // bytes, prefixes included
  unsigned operand_bytes = 0;  // of the destination register: 2, 4 or 8
  unsigned source_bytes = 0;   // of the register or memory operand; 0: there is none
  unsigned reg = 0;            // ModRM.reg with its extension
  unsigned rm = 0;             // ModRM.rm with its extension; a register unless `in_memory`
  bool in_memory = false;
  bool high_byte = false;     // an 8-bit register operand is ah, ch, dh or bh: bits 15 to 8 of register `rm`
  std::uint64_t address = 0;  // linear, when `in_memory`
};

/// What the bytes at RIP are, when they are in the table and fit the given registers. Nothing for all others: other
/// opcodes, LOCK, VEX, a prefix combination that means something else, too few bytes, a non-canonical address.
std::optional<Instruction> decode(std::span<const std::uint8_t> code, const GeneralRegisters& registers);

/// The register part of x87 and SSE that these instructions look at.
struct FloatingState {
  std::uint16_t control = 0x37F;
  std::uint16_t status = 0;
  std::uint8_t tags = 0;  // FXSAVE's form: a bit is set where a register is in use
  std::uint32_t mxcsr = 0x1F80;
  bool operator==(const FloatingState&) const = default;
};

struct ControlState {
  std::uint64_t cr0 = 0;
  std::uint64_t cr4 = 0;
};

/// A segment descriptor's fate for LAR, LSL, VERR and VERW, as the caller read it from the table.
struct Descriptor {
  bool present_in_table = false;  // the selector is not null and inside its table
  std::uint64_t low = 0;          // the descriptor's 8 bytes
};

/// Everything an instruction may read, and where its result goes.
struct Execution {
  GeneralRegisters registers;
  FloatingState floating;
  ControlState control;
  std::uint64_t source = 0;  // the register or memory operand, zero-extended
  Descriptor descriptor;     // LAR, LSL, VERR, VERW
  std::uint64_t stored = 0;  // FNSTSW and STMXCSR to memory: `source_bytes` bytes for `address`
  bool stores = false;
};

/// Carries it out on `execution`, RIP past it. False: refused (it would fault, or single-stepping is on), nothing
/// changed.
bool execute(const Instruction& instruction, Execution& execution);

/// The operand of a register form, or nothing when it is in memory or absent.
std::optional<std::uint64_t> register_operand(const Instruction& instruction, const GeneralRegisters& registers);

}  // namespace fvmm::vmm
