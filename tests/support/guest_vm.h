// A booted VM of our own guests inside the test process, and what it printed.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "support/kvm.h"
#include "vmm/vm.h"

namespace fvmm::test {

inline std::string cmdline_for(const vmm::Vm& vm, const std::string& options) {
  return "tsc_khz=" + std::to_string(vm.tsc_khz()) + " " + options;
}

/// VM with devices and CPU, nothing in memory yet.
inline Result<std::unique_ptr<vmm::Vm>> make_vm(std::uint64_t memory_bytes, vmm::VmStopped on_stopped = {}) {
  if (!on_stopped) on_stopped = [](const vmm::VcpuStop& stop) { ADD_FAILURE() << "guest stopped: " << stop.report; };
  auto vm = FVMM_TRY(vmm::Vm::create({.memory_bytes = memory_bytes, .vcpus = 1}, std::move(on_stopped)));
  FVMM_TRY(vm->attach_devices({}));
  const auto supported = FVMM_TRY(vm->kvm().supported_cpuid());
  FVMM_TRY(vm->set_cpu(FVMM_TRY(
      vmm::build_cpuid(vmm::default_cpu_template(vm->kvm().features()), supported, vm->tsc_khz()))));
  return vm;
}

/// Boots one of our guests on the zero template, paused before its first instruction.
inline Result<std::unique_ptr<vmm::Vm>> boot_vm(const std::string& name, std::uint64_t memory_bytes,
                                                const std::string& options, vmm::VmStopped on_stopped = {}) {
  auto vm = FVMM_TRY(make_vm(memory_bytes, std::move(on_stopped)));
  FVMM_TRY(vm->memory().map_zero());
  FVMM_TRY(vm->boot({.kernel = guest(name), .initrd = "", .cmdline = cmdline_for(*vm, options)}));
  return vm;
}

/// Waits until the serial output since `from` contains the text; what was printed, or nothing at the deadline.
/// Watching output needs no event from the guest, so this polls, with a limit.
inline std::string wait_for_output(vmm::Vm& vm, const std::string& text, std::size_t from = 0,
                                   std::chrono::seconds limit = std::chrono::seconds(60)) {
  const Deadline deadline = Deadline::after(limit);
  while (!deadline.passed()) {
    const std::string all = vm.serial_output()->recent();
    if (all.size() > from && all.find(text, from) != std::string::npos) return all;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ADD_FAILURE() << "no \"" << text << "\" in: " << vm.serial_output()->recent();
  return {};
}

}  // namespace fvmm::test
