#include "vmm/complete.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "vmm/page_walk.h"
#include "vmm/vcpu_state.h"

namespace fvmm::vmm {
namespace {

constexpr std::uint64_t kEferLma = 1U << 10;
constexpr std::uint64_t kCr4La57 = 1U << 12;
constexpr std::uint64_t kCr4Smap = 1U << 21;
constexpr std::uint64_t kFlagAc = 1U << 18;
// FXSAVE's layout, and the header behind it (Intel SDM vol. 1, 10.5.1 and 13.4.2).
constexpr std::size_t kStatusAt = 2, kTagsAt = 4, kMxcsrAt = 24, kXstateBvAt = 512;
constexpr std::uint64_t kX87AndSse = 3;

template <class T>
T peek(const std::string& bytes, std::size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}
template <class T>
void poke(std::string& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

GeneralRegisters general_registers(const kvm_regs& r, const kvm_sregs& s) {
  return {.gpr = {r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
                  r.r15},
          .rip = r.rip,
          .rflags = r.rflags,
          .fs_base = s.fs.base,
          .gs_base = s.gs.base};
}

void put_back(const GeneralRegisters& from, kvm_regs& r) {
  const auto& g = from.gpr;
  r.rax = g[0], r.rcx = g[1], r.rdx = g[2], r.rbx = g[3], r.rsp = g[4], r.rbp = g[5], r.rsi = g[6], r.rdi = g[7];
  r.r8 = g[8], r.r9 = g[9], r.r10 = g[10], r.r11 = g[11], r.r12 = g[12], r.r13 = g[13], r.r14 = g[14], r.r15 = g[15];
  r.rip = from.rip;
  r.rflags = from.rflags;
}

/// Guest memory by linear address, as kernel code reaches it.
class LinearMemory {
 public:
  LinearMemory(memory::GuestMemory& memory, const kvm_sregs& sregs, std::uint64_t rflags)
      : memory_(memory),
        paging_{.cr3 = sregs.cr3,
                .five_levels = (sregs.cr4 & kCr4La57) != 0,
                .user_pages = (sregs.cr4 & kCr4Smap) == 0 || (rflags & kFlagAc) != 0} {}

  std::optional<std::uint64_t> read(std::uint64_t linear, unsigned bytes) {
    std::uint64_t value = 0;
    for (unsigned i = 0; i < bytes; ++i) {
      const auto at = physical(linear + i, false);
      std::byte byte{};
      if (!at || !memory_.read(*at, std::span(&byte, 1))) return std::nullopt;
      value |= std::to_integer<std::uint64_t>(byte) << (8 * i);
    }
    return value;
  }
  /// All bytes or none.
  bool write(std::uint64_t linear, unsigned bytes, std::uint64_t value) {
    std::array<std::uint64_t, 8> at{};
    for (unsigned i = 0; i < bytes; ++i) {
      const auto one = physical(linear + i, true);
      if (!one || !memory_.layout().ram_offset(*one, 1)) return false;
      at[i] = *one;
    }
    for (unsigned i = 0; i < bytes; ++i) {
      const auto byte = static_cast<std::byte>(value >> (8 * i));
      if (!memory_.write(at[i], std::span(&byte, 1))) return false;
    }
    return true;
  }

 private:
  std::optional<std::uint64_t> physical(std::uint64_t linear, bool write) {
    return walk_pages(paging_, linear, write, [this](std::uint64_t address) -> std::optional<std::uint64_t> {
      std::uint64_t entry = 0;
      if (!memory_.read(address, std::as_writable_bytes(std::span(&entry, 1)))) return std::nullopt;
      return entry;
    });
  }

  memory::GuestMemory& memory_;
  PagingState paging_;
};

bool reads_descriptor(Opcode opcode) {
  return opcode == Opcode::kLar || opcode == Opcode::kLsl || opcode == Opcode::kVerr || opcode == Opcode::kVerw;
}

bool touches_floating_state(Opcode opcode) {
  return opcode <= Opcode::kStmxcsr;  // the first six of the list
}
static_assert(static_cast<int>(Opcode::kStmxcsr) == 5);

/// Nothing when the table cannot be read; a null selector or one past its table's limit is an answer.
std::optional<Descriptor> read_descriptor(LinearMemory& memory, const kvm_sregs& sregs, std::uint64_t selector) {
  const std::uint64_t offset = selector & 0xFFF8;
  const bool local = (selector & 4) != 0;
  if (!local && offset == 0) return Descriptor{};
  if (local && (sregs.ldt.unusable != 0 || sregs.ldt.present == 0)) return Descriptor{};
  const std::uint64_t base = local ? sregs.ldt.base : sregs.gdt.base;
  const std::uint64_t limit = local ? sregs.ldt.limit : sregs.gdt.limit;
  if (offset + 7 > limit) return Descriptor{};
  const auto low = memory.read(base + offset, 8);
  if (!low) return std::nullopt;
  return Descriptor{.present_in_table = true, .low = *low};
}

/// Operand and descriptor, as far as the instruction has them.
bool fetch_operands(const Instruction& instruction, LinearMemory& memory, const kvm_sregs& sregs,
                    Execution& execution) {
  const bool stores = instruction.opcode == Opcode::kFnstsw || instruction.opcode == Opcode::kStmxcsr;
  if (instruction.in_memory && !stores) {
    const auto value = memory.read(instruction.address, instruction.source_bytes);
    if (!value) return false;
    execution.source = *value;
  } else {
    execution.source = register_operand(instruction, execution.registers).value_or(0);
  }
  if (!reads_descriptor(instruction.opcode)) return true;
  const auto descriptor = read_descriptor(memory, sregs, execution.source);
  if (descriptor) execution.descriptor = *descriptor;
  return descriptor.has_value();
}

std::span<const std::uint8_t> code_of(const kvm_run& run) {
  const auto& failure = run.emulation_failure;
  constexpr std::uint32_t kNdataWithBytes = 3;  // flags, size and at least one word of bytes
  if (run.exit_reason != KVM_EXIT_INTERNAL_ERROR || failure.suberror != KVM_INTERNAL_ERROR_EMULATION ||
      failure.ndata < kNdataWithBytes || (failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0) {
    return {};
  }
  return {failure.insn_bytes, std::min<std::size_t>(failure.insn_size, sizeof failure.insn_bytes)};
}

}  // namespace

std::optional<Opcode> complete_instruction(int vcpu_fd, const kvm_run& run, const KvmFeatures& features,
                                           memory::GuestMemory& memory) {
  kvm_regs regs{};
  kvm_sregs sregs{};
  if (!kvm_ioctl(vcpu_fd, KVM_GET_REGS, "KVM_GET_REGS", &regs) ||
      !kvm_ioctl(vcpu_fd, KVM_GET_SREGS, "KVM_GET_SREGS", &sregs)) {
    return std::nullopt;
  }
  if ((sregs.efer & kEferLma) == 0 || sregs.cs.l == 0 || sregs.ss.dpl != 0) return std::nullopt;
  Execution execution{.registers = general_registers(regs, sregs),
                      .floating = {},
                      .control = {.cr0 = sregs.cr0, .cr4 = sregs.cr4},
                      .source = 0,
                      .descriptor = {},
                      .stored = 0,
                      .stores = false};
  const auto instruction = decode(code_of(run), execution.registers);
  if (!instruction) return std::nullopt;
  LinearMemory linear(memory, sregs, regs.rflags);
  if (!fetch_operands(*instruction, linear, sregs, execution)) return std::nullopt;
  const bool floating = touches_floating_state(instruction->opcode);
  std::string xsave;
  if (floating) {
    auto saved = get_xsave(vcpu_fd, features);
    if (!saved) return std::nullopt;
    xsave = std::move(*saved);
    execution.floating = {.control = peek<std::uint16_t>(xsave, 0),
                          .status = peek<std::uint16_t>(xsave, kStatusAt),
                          .tags = peek<std::uint8_t>(xsave, kTagsAt),
                          .mxcsr = peek<std::uint32_t>(xsave, kMxcsrAt)};
  }
  const FloatingState before = execution.floating;
  if (!execute(*instruction, execution)) return std::nullopt;
  if (execution.stores && !linear.write(instruction->address, instruction->source_bytes, execution.stored)) {
    return std::nullopt;
  }
  if (execution.floating != before) {
    poke(xsave, kStatusAt, execution.floating.status);
    poke(xsave, kTagsAt, execution.floating.tags);
    poke(xsave, kMxcsrAt, execution.floating.mxcsr);
    poke(xsave, kXstateBvAt, peek<std::uint64_t>(xsave, kXstateBvAt) | kX87AndSse);
    if (!set_xsave(vcpu_fd, features, std::move(xsave))) return std::nullopt;
  }
  put_back(execution.registers, regs);
  if (!kvm_ioctl(vcpu_fd, KVM_SET_REGS, "KVM_SET_REGS", &regs)) return std::nullopt;
  return instruction->opcode;
}

}  // namespace fvmm::vmm
