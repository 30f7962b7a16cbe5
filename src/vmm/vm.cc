#include "vmm/vm.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/check.h"
#include "vmm/acpi.h"
#include "vmm/irq.h"
#include "vmm/mp_table.h"
#include "vmm/net_config.h"
#include "vmm/virtio_devices.h"

namespace fvmm::vmm {
namespace {

// Intel's virtual-8086 helper pages; anywhere in the hole below 4 GiB that no device uses (Linux api.rst).
constexpr std::uint64_t kIdentityMapAddress = 0xFFFBC000;
constexpr std::uint64_t kTssAddress = 0xFFFBD000;

// So that KVM_GET_VCPU_EVENTS tells a pending exception from an injected one, and shows a pending triple fault.
Status enable_exact_events(int vm_fd, const KvmFeatures& features) {
  kvm_enable_cap enable{};
  enable.args[0] = 1;
  if (features.exception_payload) {
    enable.cap = KVM_CAP_EXCEPTION_PAYLOAD;
    FVMM_TRY(kvm_ioctl(vm_fd, KVM_ENABLE_CAP, "KVM_ENABLE_CAP(EXCEPTION_PAYLOAD)", &enable));
  }
  if (features.triple_fault_event) {
    enable.cap = KVM_CAP_X86_TRIPLE_FAULT_EVENT;
    FVMM_TRY(kvm_ioctl(vm_fd, KVM_ENABLE_CAP, "KVM_ENABLE_CAP(X86_TRIPLE_FAULT_EVENT)", &enable));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Vm>> Vm::create(const VmShape& shape, VmStopped on_stopped) {
  if (shape.vcpus == 0 || shape.vcpus > kVcpusMax) {
    return Error(Errc::kInvalidArgument, fmt::format("{} vCPUs; this version runs 1 to {}", shape.vcpus, kVcpusMax));
  }
  auto memory = FVMM_TRY(memory::GuestMemory::reserve(shape.memory_bytes), "guest RAM");
  Kvm kvm = FVMM_TRY(Kvm::open());
  UniqueFd fd = FVMM_TRY(kvm.create_vm());
  std::unique_ptr<Vm> vm(new Vm(std::move(kvm), shape, std::move(fd), std::move(memory), std::move(on_stopped)));
  FVMM_TRY(vm->build(), "build VM");
  return vm;
}

Vm::Vm(Kvm kvm, VmShape shape, UniqueFd fd, std::unique_ptr<memory::GuestMemory> memory, VmStopped on_stopped)
    : kvm_(std::move(kvm)),
      shape_(shape),
      fd_(std::move(fd)),
      memory_(std::move(memory)),
      on_stopped_(std::move(on_stopped)) {
  virtio_ = std::make_unique<VirtioSlots>(fd_.get(), mmio_, *memory_);
  environment_.ports = &ports_;
  environment_.mmio = &mmio_;
  environment_.memory = memory_.get();
  environment_.fence = &fence_;
  environment_.features = &kvm_.features();
  complete_instructions(kvm_.features().pvm);
  environment_.reset_requested = &reset_requested_;
  environment_.machine_stopped = &stopped_;
  environment_.on_stop = [this](unsigned index, const VcpuStop& stop) {
    if (stopped_.exchange(true)) return;  // the first vCPU's reason; the others follow it
    for (auto& vcpu : vcpus_) {
      if (vcpu->index() != index) vcpu->nudge();
    }
    on_stopped_(stop);
  };
}

// All threads end before the first vCPU goes: one that stops nudges the others.
Vm::~Vm() {
  throttle_.reset();
  for (auto& vcpu : vcpus_) vcpu->end();
}

Status Vm::build() {
  const int fd = fd_.get();
  if (!kvm_.features().manual_dirty_log) {
    spdlog::warn("KVM lacks KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: harvesting the dirty log will be slow");
  } else {
    kvm_enable_cap enable{};
    enable.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
    enable.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
    FVMM_TRY(kvm_ioctl(fd, KVM_ENABLE_CAP, "KVM_ENABLE_CAP(MANUAL_DIRTY_LOG_PROTECT2)", &enable));
  }
  FVMM_TRY(enable_exact_events(fd, kvm_.features()));
  std::uint64_t identity = kIdentityMapAddress;
  FVMM_TRY(kvm_ioctl(fd, KVM_SET_IDENTITY_MAP_ADDR, "KVM_SET_IDENTITY_MAP_ADDR", &identity));
  FVMM_TRY(kvm_ioctl(fd, KVM_SET_TSS_ADDR, "KVM_SET_TSS_ADDR", static_cast<unsigned long>(kTssAddress)));
  dirty_log_ = std::make_unique<DirtyLog>(fd, memory_->layout(), memory_->host_base(), kvm_.features());
  // Logged from the first instruction, when enabling is free: nothing is mapped yet, so nothing has to be protected.
  FVMM_TRY(dirty_log_->create());
  FVMM_TRY(kvm_ioctl(fd, KVM_CREATE_IRQCHIP, "KVM_CREATE_IRQCHIP"));
  kvm_pit_config pit{};
  pit.flags = KVM_PIT_SPEAKER_DUMMY;
  FVMM_TRY(kvm_ioctl(fd, KVM_CREATE_PIT2, "KVM_CREATE_PIT2", &pit));
  for (unsigned i = 0; i < shape_.vcpus; ++i) {
    vcpus_.push_back(FVMM_TRY(Vcpu::create(fd, i, kvm_.features(), environment_)));
  }
  throttle_ = std::make_unique<Throttle>(vcpus_);
  host_tsc_khz_ = tsc_khz_ = FVMM_TRY(vmm::tsc_khz(vcpus_[0]->fd()));
  tracked_ = std::make_unique<memory::TrackedLog>(*dirty_log_, *memory_);
  tracker_ = std::make_unique<memory::DirtyTracker>(memory_->layout().pages(), tracked_.get(), memory_->device_marks());
  return {};
}

Status Vm::attach_devices(devices::SerialOutput::Options serial_log) {
  FVMM_CHECK(!serial_, "devices are attached once");
  serial_output_ = FVMM_TRY(devices::SerialOutput::create(std::move(serial_log)), "serial log");
  com1_irq_ = std::make_unique<KvmIrqLine>(fd_.get(), devices::kCom1Irq);
  serial_gated_ = std::make_unique<devices::GatedSink>(gate_, *serial_output_);
  serial_ = std::make_unique<devices::Serial>("com1", *com1_irq_, *serial_gated_);
  i8042_ = std::make_unique<devices::I8042>([this] { reset_requested_ = true; });
  ports_.add(devices::kCom1Base, devices::kUartPorts, *serial_);
  i8042_->attach(ports_);
  return {};
}

std::size_t Vm::serial_input(std::span<const std::byte> bytes) {
  const auto guard = ports_.lock();
  return serial_ ? serial_->push_input(bytes) : 0;
}

Status Vm::attach_virtio(const v1::VmConfig& config, devices::SerialOutput::Options console_log) {
  FVMM_CHECK(virtio_->size() == 0, "virtio devices are attached once");
  FVMM_TRY(check_virtio(config));
  for (const v1::VirtioDevice& wanted : config.virtio()) {
    VirtioBackends backends;
    if (wanted.has_console()) {
      console_output_ = FVMM_TRY(devices::SerialOutput::create(std::move(console_log)), "console log");
      console_gated_ = std::make_unique<devices::GatedSink>(gate_, *console_output_);
      backends.console = console_gated_.get();
    }
    if (wanted.has_vsock()) {
      backends.vsock = std::move(vsock_host_);
      backends.gate = &gate_;
    }
    auto device = FVMM_TRY(make_virtio(wanted, std::move(backends)));
    if (wanted.has_console()) console_ = static_cast<devices::VirtioConsole*>(device.get());
    if (wanted.has_balloon()) balloon_ = static_cast<devices::VirtioBalloon*>(device.get());
    if (wanted.has_vsock()) vsock_ = static_cast<devices::VirtioVsock*>(device.get());
    FVMM_TRY(virtio_->add(std::move(device)));
  }
  for (const v1::DiskConfig& wanted : config.disks()) {
    FVMM_TRY(virtio_->add(FVMM_TRY(disks_.attach(wanted, gate_))));
  }
  auto nets = FVMM_TRY(make_nets(config, std::move(net_descriptors_), gate_));
  for (auto& net : nets) {
    nets_.push_back(net.get());
    FVMM_TRY(virtio_->add(std::move(net)));
  }
  return {};
}

void Vm::announce_nets() {
  for (devices::VirtioNet* net : nets_) net->announce();
}

void Vm::disconnect() {
  for (devices::VirtioNet* net : nets_) net->disconnect();
  if (vsock_ != nullptr) vsock_->disconnect();
}

std::size_t Vm::console_input(std::span<const std::byte> bytes) {
  const auto guard = mmio_.lock();
  return console_ != nullptr ? console_->push_input(bytes) : 0;
}

Status Vm::set_balloon_target(std::uint64_t bytes) {
  if (balloon_ == nullptr) {
    return Error(Errc::kFailedPrecondition, "it has no balloon: that is chosen when it is made (vm create --balloon)");
  }
  if (bytes % kPageBytes != 0 || bytes > shape_.memory_bytes) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("a balloon of {} bytes; it takes multiples of {} up to the VM's {}", bytes, kPageBytes,
                             shape_.memory_bytes));
  }
  const auto guard = mmio_.lock();
  balloon_->set_target(static_cast<std::uint32_t>(bytes / kPageBytes));
  return {};
}

// A bus that somebody has may be waiting for a capture: then the statistics stay as they are.
std::optional<devices::BalloonFigures> Vm::look_at_balloon() {
  if (balloon_ == nullptr) return std::nullopt;
  if (const auto guard = mmio_.try_lock()) balloon_->ask_statistics();
  return balloon_->figures();
}

Status Vm::on_each_vcpu(const std::function<Status(Vcpu&)>& function, unsigned first, unsigned end) {
  std::vector<Vcpu::Answer> answers;
  for (auto& vcpu : vcpus_) {
    if (vcpu->index() < first || vcpu->index() >= end) continue;
    answers.push_back(vcpu->call([&function, &vcpu] { return function(*vcpu); }));
  }
  Status status;
  for (auto& answer : answers) {
    // No deadline: the functions refer to our stack, and parked vCPU ioctls do not block.
    Status one = answer.get();
    if (!one && status) status = std::move(one);
  }
  return status;
}

Status Vm::set_cpu(const CpuidTable& table) {
  cpuid_ = table;
  FVMM_TRY(on_each_vcpu([&](Vcpu& vcpu) { return set_cpuid(vcpu.fd(), for_vcpu(table, vcpu.index(), shape_.vcpus)); }));
  // Which MSRs can be read depends on CPUID, so they are probed after it.
  const auto msrs = FVMM_TRY(kvm_.migratable_msrs());
  FVMM_TRY(on_each_vcpu([&](Vcpu& vcpu) -> Status {
    if (vcpu.index() == 0) profile_ = FVMM_TRY(probe_vcpu(vcpu.fd(), msrs));
    return {};
  }));
  return align_tscs();
}

// KVM puts vCPUs in step that are made within a second of each other; a busy host may need longer.
Status Vm::align_tscs() {
  if (!profile_.tsc_offset || profile_.tsc_fixed || vcpus_.size() == 1) return {};
  std::uint64_t offset = 0;
  FVMM_TRY(on_each_vcpu(
      [&](Vcpu& vcpu) -> Status {
        offset = FVMM_TRY(get_tsc_offset(vcpu.fd()));
        return {};
      },
      0, 1));
  return on_each_vcpu([&](Vcpu& vcpu) { return set_tsc_offset(vcpu.fd(), offset); }, 1);
}

Status Vm::boot(const BootRequest& request) {
  const BootEntry entry = FVMM_TRY(load_kernel(*memory_, request));
  FVMM_TRY(write_mp_table(*memory_, shape_.vcpus), "MP table");
  if (request.acpi_generation) {
    const AcpiMachine machine{.vcpus = shape_.vcpus, .virtio_devices = static_cast<unsigned>(virtio_->size())};
    FVMM_TRY(write_acpi(*memory_, machine, *request.acpi_generation));
  }
  return on_each_vcpu([&](Vcpu& vcpu) -> Status {
    if (vcpu.index() != 0) return {};
    kvm_sregs sregs{};
    kvm_regs regs{};
    FVMM_TRY(kvm_ioctl(vcpu.fd(), KVM_GET_SREGS, "KVM_GET_SREGS", &sregs));
    set_boot_registers(entry, sregs, regs);
    FVMM_TRY(kvm_ioctl(vcpu.fd(), KVM_SET_SREGS, "KVM_SET_SREGS", &sregs));
    FVMM_TRY(kvm_ioctl(vcpu.fd(), KVM_SET_REGS, "KVM_SET_REGS", &regs));
    return {};
  });
}

Status Vm::announce_generation(const Id& generation) {
  FVMM_TRY(write_generation_id(*memory_, generation), "VM generation id");
  KvmIrqLine line(fd_.get(), kGenerationGsi);
  line.set(true);  // an edge
  line.set(false);
  return {};
}

// Devices first: what waits for them is served, and their interrupts are there, before the guest goes on.
Status Vm::resume() {
  FVMM_TRY(fenced());
  if (!paused_) return {};
  FVMM_TRY(disks_.take());
  virtio_->resume();
  std::vector<Vcpu::Answer> answers;
  for (auto& vcpu : vcpus_) {
    // Tells the guest that its clock stood still, so that its watchdogs do not fire. EINVAL: it has no kvmclock.
    const int fd = vcpu->fd();
    auto told = vcpu->call([fd]() -> Status {
      (void)::ioctl(fd, KVM_KVMCLOCK_CTRL, 0);
      return {};
    });
    answers.push_back(vcpu->run());
  }
  const Deadline deadline = Deadline::after(kParkWait);
  for (auto& answer : answers) {
    const Status runs = Vcpu::wait(answer, deadline);
    if (runs) continue;
    paused_ = come_to_rest().ok();  // else a later pause tries again
    return Error(runs.error()).with("resume");
  }
  paused_ = false;
  return {};
}

Status Vm::flush_disks() {
  return paused_ ? disks_.flush(Deadline::after(kQuiesceWait)) : disks_.flush_ahead();
}

Status Vm::cut_disks() {
  FVMM_CHECK(paused_, "disks are cut in a pause");
  return disks_.cut(Deadline::after(kQuiesceWait));
}

Status Vm::pause() {
  if (paused_) return {};
  const Status rests = come_to_rest();
  if (!rests) {
    for (auto& vcpu : vcpus_) (void)vcpu->run();  // follows the park in each mailbox: nobody is left frozen
    return Error(rests.error()).with("pause");
  }
  paused_ = true;
  return {};
}

// The latch is closed before the kick: a vCPU that leaves the guest for any reason finds it, even if its mailbox is
// full. `paused_` is the owner's, who finds every vCPU parked already.
Status Vm::fence(const std::string& why) {
  fence_.close(why);
  return park_all();
}

Status Vm::come_to_rest() {
  FVMM_TRY(park_all());
  return virtio_->quiesce(Deadline::after(kQuiesceWait));
}

Status Vm::park_all() {
  std::vector<Vcpu::Answer> answers;
  for (auto& vcpu : vcpus_) answers.push_back(vcpu->park());
  const Deadline deadline = Deadline::after(kParkWait);
  Status status;
  for (auto& answer : answers) {
    Status one = Vcpu::wait(answer, deadline);
    if (!one && status) status = std::move(one);
  }
  return status;
}

}  // namespace fvmm::vmm
