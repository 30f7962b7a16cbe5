// A booted VM of our own guests inside the test process, and what it printed.
#pragma once

#include <algorithm>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "support/heartbeats.h"
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
  FVMM_TRY(vm->set_cpu(
      FVMM_TRY(vmm::build_cpuid(vmm::default_cpu_template(vm->kvm().features()), supported, vm->tsc_khz()))));
  return vm;
}

/// A VM of the same shape and CPU as another, nothing in memory yet: what a destination or a clone starts with.
inline Result<std::unique_ptr<vmm::Vm>> make_sibling(const vmm::Vm& other, vmm::VmStopped on_stopped = {}) {
  if (!on_stopped) on_stopped = [](const vmm::VcpuStop& stop) { ADD_FAILURE() << "guest stopped: " << stop.report; };
  auto vm = FVMM_TRY(vmm::Vm::create(other.shape(), std::move(on_stopped)));
  FVMM_TRY(vm->attach_devices({}));
  FVMM_TRY(vm->set_cpu(other.cpuid()));
  return vm;
}

/// All memory of a paused VM into another, whose memory it maps anonymously. Zero pages stay untouched.
inline Status copy_memory(vmm::Vm& from, vmm::Vm& to) {
  FVMM_TRY(to.memory().map_zero());
  for (memory::PageIndex page = 0; page < from.memory().layout().pages(); ++page) {
    const auto bytes = from.memory().pages({page, 1});
    if (std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; })) continue;
    std::copy(bytes.begin(), bytes.end(), to.memory().pages_for_load({page, 1}).begin());
  }
  return {};
}

/// A new VM with a paused one's memory and state: paused, ready to go on where the other stands. `edit` changes the
/// state on its way, which passes through protobuf's wire format as it would on a wire.
inline Result<std::unique_ptr<vmm::Vm>> replica_of(vmm::Vm& from,
                                                   const std::function<void(v1::MachineState&)>& edit = {}) {
  v1::MachineState state;
  EXPECT_TRUE(state.ParseFromString(FVMM_TRY(from.save_state()).SerializeAsString()));
  if (edit) edit(state);
  auto to = FVMM_TRY(make_sibling(from));
  FVMM_TRY(copy_memory(from, *to));
  FVMM_TRY(to->load_state(state));
  return to;
}

/// Learns of a guest's end from the vCPU's thread.
class StopLatch {
 public:
  [[nodiscard]] vmm::VmStopped callback() {
    return [this](const vmm::VcpuStop& stop) {
      if (count_.fetch_add(1) == 0) stop_.set_value(stop);
    };
  }
  /// The first stop; a failure of the test when none comes.
  vmm::VcpuStop wait(std::chrono::seconds limit = std::chrono::seconds(30)) {
    auto future = stop_.get_future();
    if (future.wait_for(limit) != std::future_status::ready) {
      ADD_FAILURE() << "the guest did not stop";
      return {};
    }
    return future.get();
  }
  [[nodiscard]] int count() const { return count_; }

 private:
  std::promise<vmm::VcpuStop> stop_;
  std::atomic<int> count_{0};
};

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

/// What a person types; how many bytes the port took.
inline std::size_t type(vmm::Vm& vm, const std::string& text) {
  return vm.serial_input(std::as_bytes(std::span(text)));
}

/// The whole lines that the guest printed from byte `from` of its output on, as far as the ring (64 KiB) still has
/// them.
struct PrintedLines {
  std::vector<std::string> lines;
  std::uint64_t end = 0;  // just behind the last of them
};
inline PrintedLines printed_since(vmm::Vm& vm, std::uint64_t from) {
  PrintedLines printed;
  std::string all;
  std::uint64_t total = 0;
  do {  // the text and where it ends, of one moment
    total = vm.serial_output()->total_bytes();
    all = vm.serial_output()->recent();
  } while (total != vm.serial_output()->total_bytes());
  const std::uint64_t begin = total - all.size();
  all.resize(all.rfind('\n') + 1);
  printed.end = begin + all.size();
  std::istringstream lines(all.substr(std::min<std::uint64_t>(all.size(), std::max(from, begin) - begin)));
  for (std::string line; std::getline(lines, line);) printed.lines.push_back(line);
  return printed;
}

/// Waits for one more line with this prefix; that line. Empty (and a failure) at the deadline.
inline std::string wait_for_next(vmm::Vm& vm, const std::string& prefix) {
  const std::uint64_t from = printed_since(vm, 0).end;
  const Deadline deadline = Deadline::after(std::chrono::seconds(60));
  while (!deadline.passed()) {
    for (const std::string& line : printed_since(vm, from).lines) {
      if (line.starts_with(prefix)) return line;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ADD_FAILURE() << "no further \"" << prefix << "\" in: " << vm.serial_output()->recent();
  return {};
}

/// Waits until the workload has verified everything since this call: a whole sweep that began after what it said last.
/// Returns the guest's complaint, empty when all is well.
inline std::string verified(vmm::Vm& vm) {
  const auto last = [&] {
    const auto beats = heartbeats(vm.serial_output()->recent());
    return beats.empty() ? Heartbeat{} : beats.back();
  };
  (void)wait_for_next(vm, "HB ");
  const std::uint64_t sweeps = last().sweeps;
  const Deadline deadline = Deadline::after(std::chrono::seconds(60));
  while (last().sweeps < sweeps + 2) {  // the one under way, then a whole one
    if (deadline.passed()) return "no sweep: " + vm.serial_output()->recent();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (last().errors != 0) return "errors: " + vm.serial_output()->recent();
  return complaint(vm.serial_output()->recent());
}

}  // namespace fvmm::test
