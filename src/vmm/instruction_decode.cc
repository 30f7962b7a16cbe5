// Decoding: prefixes, opcode, ModRM, SIB, displacement (Intel SDM vol. 2A, chapter 2 and appendix A).
#include <algorithm>

#include "vmm/instruction.h"

namespace fvmm::vmm {
namespace {

struct Prefixes {
  bool operand_size = false;  // 66
  bool address_size = false;  // 67
  std::uint8_t repeat = 0;    // F2 or F3, the last one
  bool fs = false;
  bool gs = false;
  std::uint8_t rex = 0;

  [[nodiscard]] bool w() const { return (rex & 8) != 0; }
  [[nodiscard]] unsigned r() const { return (rex & 4) != 0 ? 8 : 0; }
  [[nodiscard]] unsigned x() const { return (rex & 2) != 0 ? 8 : 0; }
  [[nodiscard]] unsigned b() const { return (rex & 1) != 0 ? 8 : 0; }
};

class Reader {
 public:
  explicit Reader(std::span<const std::uint8_t> code)
      : code_(code.first(std::min(code.size(), kInstructionBytesMax))) {}
  std::optional<std::uint8_t> next() {
    if (at_ == code_.size()) return std::nullopt;
    return code_[at_++];
  }
  /// Little-endian and signed.
  std::optional<std::int64_t> displacement(unsigned bytes) {
    if (code_.size() - at_ < bytes) return std::nullopt;
    std::uint64_t value = 0;
    for (unsigned i = 0; i < bytes; ++i) value |= std::uint64_t{code_[at_++]} << (8 * i);
    const unsigned unused = 64 - 8 * bytes;
    return bytes == 0 ? 0 : static_cast<std::int64_t>(value << unused) >> unused;
  }
  [[nodiscard]] unsigned used() const { return static_cast<unsigned>(at_); }

 private:
  std::span<const std::uint8_t> code_;
  std::size_t at_ = 0;
};

/// The first byte behind the prefixes. Nothing: cut off, LOCK, or a REX that something follows which voids it.
std::optional<std::uint8_t> read_prefixes(Reader& reader, Prefixes& prefixes) {
  for (;;) {
    const auto byte = reader.next();
    if (!byte) return std::nullopt;
    switch (*byte) {
      case 0x66:
        prefixes.operand_size = true;
        continue;
      case 0x67:
        prefixes.address_size = true;
        continue;
      case 0xF2:
      case 0xF3:
        prefixes.repeat = *byte;
        continue;
      case 0x64:
        prefixes.fs = true;
        prefixes.gs = false;
        continue;
      case 0x65:
        prefixes.gs = true;
        prefixes.fs = false;
        continue;
      case 0x26:
      case 0x2E:
      case 0x36:
      case 0x3E:  // no meaning in 64-bit mode
        continue;
      case 0xF0:
        return std::nullopt;
      default:
        break;
    }
    if ((*byte & 0xF0) != 0x40) return byte;
    prefixes.rex = *byte;
    const auto opcode = reader.next();  // a prefix behind REX voids it: no assembler writes that
    if (!opcode || (*opcode & 0xF0) == 0x40) return std::nullopt;
    constexpr std::array<std::uint8_t, 11> kPrefixes{0x66, 0x67, 0xF2, 0xF3, 0x64, 0x65, 0x26, 0x2E, 0x36, 0x3E, 0xF0};
    if (std::find(kPrefixes.begin(), kPrefixes.end(), *opcode) != kPrefixes.end()) return std::nullopt;
    return opcode;
  }
}

bool canonical(std::uint64_t address) {
  const auto top = static_cast<std::int64_t>(address) >> 47;
  return top == 0 || top == -1;
}

/// ModRM is known; the rest of the operand's encoding is read, and its address is computed. RIP-relative addresses
/// count from the end of the instruction: none of the table has an immediate behind the operand.
bool read_memory_operand(Reader& reader, const Prefixes& prefixes, std::uint8_t modrm,
                         const GeneralRegisters& registers, Instruction& instruction) {
  const unsigned mod = modrm >> 6;
  const unsigned low = modrm & 7;
  std::uint64_t address = 0;
  bool relative = false;
  unsigned displacement_bytes = mod == 1 ? 1 : mod == 2 ? 4 : 0;
  if (low == 4) {
    const auto sib = reader.next();
    if (!sib) return false;
    const unsigned index = ((*sib >> 3) & 7) + prefixes.x();
    const unsigned base = *sib & 7;
    if (index != 4) address += registers.gpr[index] << (*sib >> 6);
    if (base == 5 && mod == 0) {
      displacement_bytes = 4;
    } else {
      address += registers.gpr[base + prefixes.b()];
    }
  } else if (low == 5 && mod == 0) {
    relative = true;
    displacement_bytes = 4;
  } else {
    address += registers.gpr[low + prefixes.b()];
  }
  const auto displacement = reader.displacement(displacement_bytes);
  if (!displacement) return false;
  address += static_cast<std::uint64_t>(*displacement);
  if (relative) address += registers.rip + reader.used();
  if (prefixes.address_size) address &= 0xFFFFFFFFU;
  if (prefixes.fs) address += registers.fs_base;
  if (prefixes.gs) address += registers.gs_base;
  instruction.in_memory = true;
  instruction.address = address;
  return canonical(address) && canonical(address + 7);
}

bool read_operand(Reader& reader, const Prefixes& prefixes, const GeneralRegisters& registers, Instruction& instruction,
                  std::uint8_t modrm) {
  instruction.reg = ((modrm >> 3) & 7) + prefixes.r();
  if (modrm >> 6 != 3) return read_memory_operand(reader, prefixes, modrm, registers, instruction);
  instruction.rm = (modrm & 7) + prefixes.b();
  return true;
}

unsigned operand_bytes(const Prefixes& prefixes) {
  if (prefixes.w()) return 8;
  return prefixes.operand_size ? 2 : 4;
}

bool plain(const Prefixes& prefixes) {
  return prefixes.repeat == 0 && !prefixes.operand_size;
}

/// 0F 00: VERR and VERW. 0F 02, 0F 03: LAR and LSL.
bool decode_selector(Opcode opcode, Reader& reader, const Prefixes& prefixes, const GeneralRegisters& registers,
                     Instruction& instruction, std::uint8_t modrm) {
  if (prefixes.repeat != 0) return false;
  instruction.opcode = opcode;
  instruction.operand_bytes = operand_bytes(prefixes);
  instruction.source_bytes = 2;  // a selector, whatever the operand size
  return read_operand(reader, prefixes, registers, instruction, modrm);
}

/// 0F AE: LDMXCSR, STMXCSR, and with 66 CLWB. Registers in their place are other instructions.
bool decode_group15(Reader& reader, const Prefixes& prefixes, const GeneralRegisters& registers,
                    Instruction& instruction, std::uint8_t modrm) {
  const unsigned which = (modrm >> 3) & 7;
  if (modrm >> 6 == 3 || prefixes.repeat != 0) return false;
  if (prefixes.operand_size) {
    if (which != 6) return false;
    instruction.opcode = Opcode::kClwb;
    instruction.source_bytes = 1;
  } else {
    if (which != 2 && which != 3) return false;
    instruction.opcode = which == 2 ? Opcode::kLdmxcsr : Opcode::kStmxcsr;
    instruction.source_bytes = 4;
  }
  return read_operand(reader, prefixes, registers, instruction, modrm);
}

/// F2 0F 38 F0 and F1: CRC32 of a byte or of a word of the operand size. The destination has 32 or 64 bits.
bool decode_crc32(Reader& reader, const Prefixes& prefixes, const GeneralRegisters& registers,
                  Instruction& instruction) {
  const auto opcode = reader.next();
  const auto modrm = reader.next();
  if (!opcode || !modrm || (*opcode != 0xF0 && *opcode != 0xF1) || prefixes.repeat != 0xF2) return false;
  instruction.opcode = Opcode::kCrc32;
  instruction.operand_bytes = prefixes.w() ? 8 : 4;
  instruction.source_bytes = *opcode == 0xF0 ? 1 : operand_bytes(prefixes);
  if (!read_operand(reader, prefixes, registers, instruction, *modrm)) return false;
  if (!instruction.in_memory && instruction.source_bytes == 1 && prefixes.rex == 0 && instruction.rm >= 4) {
    instruction.rm -= 4;
    instruction.high_byte = true;
  }
  return true;
}

bool decode_two_byte(Reader& reader, const Prefixes& prefixes, const GeneralRegisters& registers,
                     Instruction& instruction) {
  const auto opcode = reader.next();
  if (!opcode) return false;
  if (*opcode == 0x77) {
    instruction.opcode = Opcode::kEmms;
    return plain(prefixes);
  }
  if (*opcode == 0x38) return decode_crc32(reader, prefixes, registers, instruction);
  const auto modrm = reader.next();
  if (!modrm) return false;
  const unsigned which = (*modrm >> 3) & 7;
  switch (*opcode) {
    case 0x00:
      if (which != 4 && which != 5) return false;
      return decode_selector(which == 4 ? Opcode::kVerr : Opcode::kVerw, reader, prefixes, registers, instruction,
                             *modrm);
    case 0x01:
      if ((*modrm != 0xCA && *modrm != 0xCB) || !plain(prefixes)) return false;
      instruction.opcode = *modrm == 0xCA ? Opcode::kClac : Opcode::kStac;
      return true;
    case 0x02:
    case 0x03:
      return decode_selector(*opcode == 0x02 ? Opcode::kLar : Opcode::kLsl, reader, prefixes, registers, instruction,
                             *modrm);
    case 0xAE:
      return decode_group15(reader, prefixes, registers, instruction, *modrm);
    case 0xB8:
      if (prefixes.repeat != 0xF3) return false;
      instruction.opcode = Opcode::kPopcnt;
      instruction.operand_bytes = instruction.source_bytes = operand_bytes(prefixes);
      return read_operand(reader, prefixes, registers, instruction, *modrm);
    default:
      return false;
  }
}

/// D8 to DF: FNCLEX (DB E2), FNSTSW AX (DF E0), FNSTSW m16 (DD /7).
bool decode_x87(std::uint8_t opcode, Reader& reader, const Prefixes& prefixes, const GeneralRegisters& registers,
                Instruction& instruction) {
  const auto modrm = reader.next();
  if (!modrm) return false;
  if (opcode == 0xDB && *modrm == 0xE2) {
    instruction.opcode = Opcode::kFnclex;
    return true;
  }
  instruction.opcode = Opcode::kFnstsw;
  instruction.operand_bytes = 2;
  if (opcode == 0xDF && *modrm == 0xE0) return true;
  if (opcode != 0xDD || *modrm >> 6 == 3 || ((*modrm >> 3) & 7) != 7) return false;
  instruction.source_bytes = 2;
  return read_operand(reader, prefixes, registers, instruction, *modrm);
}

bool decode_opcode(std::uint8_t opcode, Reader& reader, const Prefixes& prefixes, const GeneralRegisters& registers,
                   Instruction& instruction) {
  switch (opcode) {
    case 0x0F:
      return decode_two_byte(reader, prefixes, registers, instruction);
    case 0x9B:
      instruction.opcode = Opcode::kFwait;
      return true;
    case 0xDB:
    case 0xDD:
    case 0xDF:
      return decode_x87(opcode, reader, prefixes, registers, instruction);
    default:
      return false;
  }
}

}  // namespace

std::optional<Instruction> decode(std::span<const std::uint8_t> code, const GeneralRegisters& registers) {
  Reader reader(code);
  Prefixes prefixes;
  const auto opcode = read_prefixes(reader, prefixes);
  Instruction instruction;
  if (!opcode || !decode_opcode(*opcode, reader, prefixes, registers, instruction)) return std::nullopt;
  instruction.length = reader.used();
  return instruction;
}

}  // namespace fvmm::vmm
