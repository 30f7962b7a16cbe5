#include "vmm/exits.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "base/id.h"
#include "vmm/complete.h"

namespace fvmm::vmm {
namespace {

using Kind = VcpuStop::Kind;

void handle_port(kvm_run& run, devices::Bus& ports) {
  auto* const data = reinterpret_cast<std::byte*>(&run) + run.io.data_offset;
  const std::span<std::byte> bytes(data, std::size_t{run.io.size} * run.io.count);
  if (run.io.direction == KVM_EXIT_IO_OUT) {
    ports.write_repeated(run.io.port, run.io.size, bytes);
  } else {
    ports.read_repeated(run.io.port, run.io.size, bytes);
  }
}

void handle_mmio(kvm_run& run, devices::Bus& mmio) {
  const std::span<std::byte> bytes(reinterpret_cast<std::byte*>(run.mmio.data), run.mmio.len);
  if (run.mmio.is_write != 0) {
    mmio.write(run.mmio.phys_addr, bytes);
  } else {
    mmio.read(run.mmio.phys_addr, bytes);
  }
}

std::string internal_error_text(const kvm_run& run) {
  std::string text = fmt::format("KVM internal error, suberror {}", run.internal.suberror);
  if (run.internal.suberror == KVM_INTERNAL_ERROR_EMULATION) text += " (instruction emulation failed)";
  for (unsigned i = 0; i < run.internal.ndata && i < 16; ++i) text += fmt::format(" {:#x}", run.internal.data[i]);
  return text;
}

std::string code_bytes(int vcpu_fd, const memory::GuestMemory& memory, std::uint64_t linear) {
  kvm_translation translation{};
  translation.linear_address = linear;
  if (!kvm_ioctl(vcpu_fd, KVM_TRANSLATE, "KVM_TRANSLATE", &translation) || translation.valid == 0) return "not mapped";
  std::array<std::byte, 16> code{};
  const std::uint64_t room = kPageBytes - translation.physical_address % kPageBytes;  // the next page may be elsewhere
  const auto part = std::span(code).first(std::min<std::uint64_t>(room, code.size()));
  if (!memory.read(translation.physical_address, part)) return "not RAM";
  return to_hex(part);
}

}  // namespace

std::string describe_stop(int vcpu_fd, const memory::GuestMemory& memory, std::string_view reason) {
  kvm_regs r{};
  kvm_sregs s{};
  if (!kvm_ioctl(vcpu_fd, KVM_GET_REGS, "KVM_GET_REGS", &r) ||
      !kvm_ioctl(vcpu_fd, KVM_GET_SREGS, "KVM_GET_SREGS", &s)) {
    return fmt::format("{} (registers cannot be read)", reason);
  }
  return fmt::format(
      "{}\n  rip={:016x} rsp={:016x} rflags={:08x} cs={:04x} cpl={}\n"
      "  rax={:016x} rbx={:016x} rcx={:016x} rdx={:016x}\n  rsi={:016x} rdi={:016x} rbp={:016x}\n"
      "  r8={:016x} r9={:016x} r10={:016x} r11={:016x}\n  r12={:016x} r13={:016x} r14={:016x} r15={:016x}\n"
      "  cr0={:08x} cr2={:016x} cr3={:016x} cr4={:08x} efer={:08x}\n  code={}",
      reason, r.rip, r.rsp, r.rflags, s.cs.selector, s.ss.dpl, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8,
      r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, s.cr0, s.cr2, s.cr3, s.cr4, s.efer,
      code_bytes(vcpu_fd, memory, s.cs.base + r.rip));
}

std::optional<VcpuStop> handle_exit(int vcpu_fd, kvm_run& run, const VcpuEnvironment& environment) {
  const auto failed = [&](std::string_view reason) {
    return VcpuStop{Kind::kFailed, describe_stop(vcpu_fd, *environment.memory, reason)};
  };
  const auto unless_reset = [&]() -> std::optional<VcpuStop> {
    if (environment.reset_requested == nullptr || !*environment.reset_requested) return std::nullopt;
    return VcpuStop{Kind::kReset, "the guest pulled the reset line"};
  };
  switch (run.exit_reason) {
    case KVM_EXIT_IO:
      handle_port(run, *environment.ports);
      return unless_reset();
    case KVM_EXIT_MMIO:
      handle_mmio(run, *environment.mmio);
      return unless_reset();
    case KVM_EXIT_INTR:
    case KVM_EXIT_IRQ_WINDOW_OPEN:
      return std::nullopt;
    case KVM_EXIT_SHUTDOWN:
      return VcpuStop{Kind::kReset, "the guest triple-faulted or shut down"};
    case KVM_EXIT_SYSTEM_EVENT:
      if (run.system_event.type == KVM_SYSTEM_EVENT_CRASH) return failed("the guest reported a crash");
      return VcpuStop{Kind::kReset, "the guest asked for a reset or power-off"};
    case KVM_EXIT_INTERNAL_ERROR:
      if (environment.completed != nullptr &&
          complete_instruction(vcpu_fd, run, *environment.features, *environment.memory)) {
        ++*environment.completed;
        return std::nullopt;
      }
      return failed(internal_error_text(run));
    case KVM_EXIT_FAIL_ENTRY:
      return failed(fmt::format("entering the guest failed, hardware reason {:#x}",
                                static_cast<std::uint64_t>(run.fail_entry.hardware_entry_failure_reason)));
    default:
      return failed(fmt::format("KVM exit {} that this VMM does not handle", run.exit_reason));
  }
}

}  // namespace fvmm::vmm
