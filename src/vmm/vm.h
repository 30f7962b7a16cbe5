// A virtual machine: KVM's objects, guest memory, devices and vCPU threads.
//
// Life:  create() warm and empty ─► attach_devices() ─► boot() or load_memory_and_state ─► resume() ⇄ pause() ─►
// destroyed Owner: the worker's VM thread, or the migration that took it by move. Every method is the owner's, except
// fence(), with which whoever learns that the right to run has gone stops it.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fence.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/bus.h"
#include "devices/console.h"
#include "devices/i8042.h"
#include "devices/output_gate.h"
#include "devices/serial.h"
#include "devices/virtio_balloon.h"
#include "devices/virtio_console.h"
#include "devices/virtio_net.h"
#include "devices/virtio_vsock.h"
#include "memory/dirty.h"
#include "memory/guest_memory.h"
#include "memory/tracking.h"
#include "proto/state.pb.h"
#include "vmm/boot.h"
#include "vmm/cpuid.h"
#include "vmm/dirty_log.h"
#include "vmm/disks.h"
#include "vmm/irq.h"
#include "vmm/kvm.h"
#include "vmm/throttle.h"
#include "vmm/vcpu.h"
#include "vmm/vcpu_state.h"
#include "vmm/virtio_slots.h"

namespace fvmm::vmm {

inline constexpr unsigned kVcpusMax = 16;
inline constexpr std::chrono::milliseconds kParkWait{5000};  // a vCPU thread that needs longer is stuck in the kernel
inline constexpr std::chrono::milliseconds kQuiesceWait{5000};  // for devices to finish what they have in flight

struct VmShape {
  std::uint64_t memory_bytes = 0;
  unsigned vcpus = 1;
};

/// Why the guest stopped by itself; the owner learns it through VmEvents.
using VmStopped = std::function<void(const VcpuStop&)>;  // called on a vCPU's thread; must not block

class Vm {
 public:
  /// Everything slow and independent of what will run: VM, memslots over reserved addresses (before the irqchip: a
  /// hundred times cheaper), irqchip, PIT, vCPUs and their threads. kInvalidArgument for a bad shape.
  static Result<std::unique_ptr<Vm>> create(const VmShape& shape, VmStopped on_stopped);
  ~Vm();
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;
  Vm(Vm&&) = delete;
  Vm& operator=(Vm&&) = delete;

  /// Serial port COM1 and the i8042's reset line. Once, before boot() or load_state().
  Status attach_devices(devices::SerialOutput::Options serial_log);
  /// The virtio devices of a configuration, in its order, then its disks. Once, before boot() or load_state().
  /// `console_log`: of the virtio console, if there is one. kInvalidArgument as check_virtio(); errors of Disks.
  Status attach_virtio(const v1::VmConfig& config, devices::SerialOutput::Options console_log);
  /// The descriptors of the configuration's networks, in its order (net_config.h). Before attach_virtio().
  void give_nets(std::vector<UniqueFd> descriptors) { net_descriptors_ = std::move(descriptors); }
  /// The socket of the configuration's vsock device (vsock_config.h), if it has one. Before attach_virtio().
  void give_vsock(std::unique_ptr<devices::VsockHost> host) { vsock_host_ = std::move(host); }
  /// CPUID of every vCPU. Once, before boot() or load_state().
  Status set_cpu(const CpuidTable& table);
  /// How its writes are tracked; logged unless this says otherwise. Once, before memory is mapped.
  Status set_tracking(memory::Tracking tracking) { return tracked_->choose(tracking); }
  /// The guest's TSC frequency, which starts as the host's. Before load_state(), so that a frequency that this host
  /// cannot give is refused before any pause: kFailedPrecondition. load_state() would do it, too.
  Status set_tsc_khz(std::uint32_t khz);
  /// Whether instructions at which KVM's emulator stops are completed here (complete.h). At first only on PVM hosts;
  /// elsewhere such a stop is a fault of KVM that should be seen. Before the first resume().
  void complete_instructions(bool on) { environment_.completed = on ? &completed_ : nullptr; }
  /// How many were, so far. Thread: any.
  [[nodiscard]] std::uint64_t completed_instructions() const { return completed_; }
  /// A clone tells its guest that it is one: the id into memory, and the event. Before resume(), after load_state().
  Status announce_generation(const Id& generation);
  /// Kernel into memory (which the owner has mapped), first vCPU to its entry.
  Status boot(const BootRequest& request);

  /// First entry or the end of a pause. Takes the disks first, where another host has had them. Answers when every vCPU
  /// thread is about to enter KVM_RUN. On an error (a vCPU has stopped for good) everything is parked again.
  Status resume();
  /// Parks every vCPU, then drains the devices; a second pause is fine. kDeadlineExceeded leaves them running or
  /// parking.
  Status pause();
  [[nodiscard]] bool paused() const { return paused_; }
  /// The right to run has gone elsewhere: parks every vCPU at once, for good, whatever its owner does meanwhile. From
  /// then on resume() is kAborted with the reason. kDeadlineExceeded: a vCPU is stuck in the kernel, and parks when it
  /// leaves that. Thread: any.
  Status fence(const std::string& why);
  [[nodiscard]] Status fenced() const { return fence_.check(); }  // thread: any
  /// As Machine in migration/machine.h.
  Status take_disks() { return disks_.take(); }
  Status flush_disks();
  void let_go_of_disks() { disks_.let_go(); }
  /// The instant of a template's disk cut, in a pause: Disks::cut().
  Status cut_disks();
  [[nodiscard]] Disks& disks() { return disks_; }
  /// Holds the guest back for that part of its time, at most kThrottlePercentMax; 0: not at all.
  void throttle(unsigned percent) { throttle_->set(percent); }

  /// vCPUs, irqchip, PIT, clock and devices. FVMM_CHECKs that the VM is paused. kFailedPrecondition when the guest has
  /// stopped by itself.
  Result<v1::MachineState> save_state();
  /// Into a VM that has never run, with CPU set and devices attached. A state of the wrong form changes nothing
  /// (check_state() in state_check.h). Errors after that, when KVM refuses a value, leave a VM that only another
  /// load_state() makes fit to run.
  Status load_state(const v1::MachineState& state);

  [[nodiscard]] memory::GuestMemory& memory() { return *memory_; }
  [[nodiscard]] memory::DirtyTracker& dirty() { return *tracker_; }
  [[nodiscard]] const memory::TrackedLog& tracked() const { return *tracked_; }
  [[nodiscard]] const Kvm& kvm() const { return kvm_; }
  [[nodiscard]] const VmShape& shape() const { return shape_; }
  [[nodiscard]] const CpuidTable& cpuid() const { return cpuid_; }
  [[nodiscard]] std::uint32_t tsc_khz() const { return tsc_khz_; }
  [[nodiscard]] devices::SerialOutput* serial_output() { return serial_output_.get(); }
  /// Input towards COM1; returns how much was taken. Thread: any.
  std::size_t serial_input(std::span<const std::byte> bytes);
  /// The virtio console, as the serial port; null and 0 without one.
  [[nodiscard]] devices::SerialOutput* console_output() { return console_output_.get(); }
  std::size_t console_input(std::span<const std::byte> bytes);
  [[nodiscard]] VirtioSlots& virtio() { return *virtio_; }
  /// How much memory its balloon shall take from the guest; tells the guest, and waits for nothing. kFailedPrecondition
  /// without a balloon; kInvalidArgument: no multiple of 4096, or more than there is. Thread: any.
  Status set_balloon_target(std::uint64_t bytes);
  /// What the balloon says; empty without one. Asks the guest for newer statistics, if that takes no waiting. Thread:
  /// any.
  [[nodiscard]] std::optional<devices::BalloonFigures> look_at_balloon();
  /// In the order of the configuration. Their methods for any thread may be called.
  [[nodiscard]] const std::vector<devices::VirtioNet*>& nets() const { return nets_; }
  /// The guest has come to this host: its networks tell the switches around. Thread: any. After attach_virtio().
  void announce_nets();
  /// Null: it has none. Its methods for any thread may be called.
  [[nodiscard]] const devices::VirtioVsock* vsock() const { return vsock_; }
  /// The guest has left this host for good: its networks fall silent, nobody is connected to it over vsock any more,
  /// and what they were connected to is free. Thread: any.
  void disconnect();
  /// Everything that leaves this VM passes here.
  [[nodiscard]] devices::OutputGate& gate() { return gate_; }

 private:
  Vm(Kvm kvm, VmShape shape, UniqueFd fd, std::unique_ptr<memory::GuestMemory> memory, VmStopped on_stopped);
  Status build();
  struct TscPlace {
    enum class How { kLeave, kOffset, kValue };
    How how = How::kLeave;
    std::uint64_t value = 0;  // the offset, or the TSC itself
  };
  /// On the threads of vCPUs [first, end), at once; the first error.
  Status on_each_vcpu(const std::function<Status(Vcpu&)>& function, unsigned first = 0, unsigned end = kVcpusMax);
  Status park_all();
  Status come_to_rest();
  Status save_irqchip(v1::MachineState& state);
  Status load_irqchip(const v1::MachineState& state);
  Status save_clocks(v1::MachineState& state);
  Status load_vcpus(const v1::MachineState& state);
  Status load_devices(const v1::MachineState& state);
  Result<TscPlace> place_tsc(Vcpu& first, const v1::MachineState& state);
  Status align_tscs();
  static Status set_tsc_place(Vcpu& vcpu, const TscPlace& place);

  Kvm kvm_;
  VmShape shape_;
  UniqueFd fd_;
  std::unique_ptr<memory::GuestMemory> memory_;
  VmStopped on_stopped_;
  std::unique_ptr<DirtyLog> dirty_log_;
  std::unique_ptr<memory::TrackedLog> tracked_;
  std::unique_ptr<memory::DirtyTracker> tracker_;
  Fence fence_;
  devices::Bus ports_{"port"};
  devices::Bus mmio_{"mmio"};
  devices::OutputGate gate_;
  std::unique_ptr<KvmIrqLine> com1_irq_;
  std::unique_ptr<devices::SerialOutput> serial_output_;
  std::unique_ptr<devices::GatedSink> serial_gated_;
  std::unique_ptr<devices::Serial> serial_;
  std::unique_ptr<devices::I8042> i8042_;
  std::unique_ptr<devices::SerialOutput> console_output_;
  std::unique_ptr<devices::GatedSink> console_gated_;
  Disks disks_;  // their devices are in virtio_
  std::unique_ptr<VirtioSlots> virtio_;
  devices::VirtioConsole* console_ = nullptr;       // one of virtio_
  devices::VirtioBalloon* balloon_ = nullptr;       // one of virtio_
  std::vector<UniqueFd> net_descriptors_;           // until attach_virtio()
  std::vector<devices::VirtioNet*> nets_;           // of virtio_
  std::unique_ptr<devices::VsockHost> vsock_host_;  // until attach_virtio()
  devices::VirtioVsock* vsock_ = nullptr;           // one of virtio_
  VcpuEnvironment environment_;
  CpuidTable cpuid_;
  std::uint32_t host_tsc_khz_ = 0;
  std::uint32_t tsc_khz_ = 0;  // the guest's
  bool tsc_scaled_ = false;
  VcpuProfile profile_;
  bool paused_ = true;
  std::atomic<bool> stopped_{false};          // by the guest itself, for good; set on a vCPU's thread
  std::atomic<std::uint64_t> completed_{0};   // instructions, by the vCPUs' threads
  std::atomic<bool> reset_requested_{false};  // the i8042's reset line
  std::vector<std::unique_ptr<Vcpu>> vcpus_;  // their threads end before what they use
  std::unique_ptr<Throttle> throttle_;        // last: it sends them messages
};

}  // namespace fvmm::vmm
