// Worker: from the warm, empty VM to a guest (booted, cloned, or a replica that waits for COMMIT).
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "daemon/worker_process.h"
#include "memory/resident.h"
#include "migration/template_ref.h"
#include "vmm/cpuid.h"
#include "vmm/vsock_config.h"

namespace fvmm::daemon {

Result<std::shared_ptr<vmm::Vm>> Worker::take_warm(const v1::VmConfig& config) {
  if (config.memory_bytes() != options_.memory_bytes || config.vcpus() != options_.vcpus) {
    return Error(Errc::kInternal,
                 fmt::format("a VM of {} bytes and {} vCPUs in a worker made for {} and {}", config.memory_bytes(),
                             config.vcpus(), options_.memory_bytes, options_.vcpus));
  }
  const std::lock_guard lock(warm_mutex_);
  if (!warm_) return Error(Errc::kFailedPrecondition, "this worker has already been given a VM");
  FVMM_TRY(warm_->set_tracking(FVMM_TRY(memory::parse_tracking(config.tracking()))));  // nothing is mapped yet: cheap
  return std::shared_ptr<vmm::Vm>(std::move(warm_));
}

// Serial port with its log and console, and the CPU. From here the VM lives as long as the worker: the console and `vm
// show` use its serial port whatever becomes of the guest.
Status Worker::dress(const std::shared_ptr<vmm::Vm>& shared, const v1::VmConfig& config,
                     const std::string& vm_directory, const vmm::CpuidTable& cpu) {
  vm_ = shared;
  vmm::Vm& vm = *shared;
  devices::SerialOutput::Options log;
  log.log = std::filesystem::path(vm_directory) / "serial.log";
  FVMM_TRY(vm.attach_devices(std::move(log)));
  devices::SerialOutput::Options console_log;
  console_log.log = std::filesystem::path(vm_directory) / "hvc0.log";
  if (const auto* const vsock = vmm::vsock_of(config)) vm.give_vsock(FVMM_TRY(vmm::open_vsock(*vsock, vm_directory)));
  FVMM_TRY(vm.attach_virtio(config, std::move(console_log)));
  FVMM_TRY(vm.set_cpu(cpu), "set CPU");
  vm_directory_ = vm_directory;
  serial_ = vm.serial_output();
  console_ = FVMM_TRY(
      devices::ConsoleServer::start(options_.socket.string() + ".console", *vm.serial_output(),
                                    [&vm](std::span<const std::byte> bytes) { return vm.serial_input(bytes); }),
      "console");
  if (vm.console_output() == nullptr) return {};
  virtio_console_ = FVMM_TRY(
      devices::ConsoleServer::start(options_.socket.string() + ".hvc0", *vm.console_output(),
                                    [&vm](std::span<const std::byte> bytes) { return vm.console_input(bytes); }),
      "virtio console");
  return {};
}

std::unique_ptr<migration::Guest> Worker::wrap(std::shared_ptr<vmm::Vm> vm, const v1::VmConfig& config,
                                               std::uint64_t token, std::optional<memory::OpenTemplate> pin) {
  auto guest = std::make_unique<migration::Guest>();
  guest->config = config;
  guest->fencing_token = token;
  if (pin) guest->base = migration::to_ref(pin->info());
  guest->pin = std::move(pin);
  guest->machine = std::make_unique<migration::VmMachine>(std::move(vm), boot_id_);
  guest->since_base = guest->machine->dirty().add_reader();
  return guest;
}

void Worker::show(const migration::Guest& guest) {
  board_.change([&](v1::WorkerInfo& info) {
    *info.mutable_config() = guest.config;
    *info.mutable_template_() = guest.base;
    info.set_fencing_token(guest.fencing_token);
    info.set_console_path(options_.socket.string() + ".console");
    if (virtio_console_) info.set_virtio_console_path(virtio_console_->path().string());
  });
}

Status Worker::start(migration::Guest& guest, bool run, SteadyTime began) {
  FVMM_TRY(guest.machine->take_disks());  // paused or not, it is this VM's from here on
  show(guest);
  if (!run) {
    board_.set_state(v1::VM_PAUSED, "");
    return {};
  }
  board_.set_state(v1::VM_RUNNING, "");  // before the first entry: a guest that stops at once must have the last word
  FVMM_TRY(guest.machine->resume(), "start");
  const double took = to_ms(std::chrono::steady_clock::now() - began);
  board_.change([&](v1::WorkerInfo& info) { info.set_start_ms(took); });
  return {};
}

Result<v1::WorkerInfo> Worker::boot(const v1::WorkerBootRequest& request, std::vector<UniqueFd> nets) {
  const auto began = std::chrono::steady_clock::now();
  GuestSlot::Held held = FVMM_TRY(slot_.take("boot"));
  const v1::VmConfig& config = request.config();
  std::shared_ptr<vmm::Vm> vm = FVMM_TRY(take_warm(config));
  vm->give_nets(std::move(nets));
  const auto supported = FVMM_TRY(vm->kvm().supported_cpuid());
  const v1::CpuTemplate cpu = FVMM_TRY(vmm::cpu_template_of(config, vm->kvm().features()));
  FVMM_TRY(dress(vm, config, request.vm_directory(), FVMM_TRY(vmm::build_cpuid(cpu, supported, vm->tsc_khz()))));
  FVMM_TRY(vm->memory().map_zero());
  vmm::BootRequest boot;
  boot.kernel = config.kernel();
  boot.initrd = config.initrd();
  // Guests without CPUID leaf 0x40000010 (all of them on a PVM host) learn the TSC frequency here; Linux passes it by.
  // Before the user's words: behind a "--" they would be init's.
  boot.cmdline = fmt::format("tsc_khz={}{}{}{}", vm->tsc_khz(),
                             config.acpi() ? "" : vm->virtio().cmdline(),  // its devices are in the DSDT
                             config.cmdline().empty() ? "" : " ", config.cmdline());
  if (config.acpi()) boot.acpi_generation = FVMM_TRY(Id::from_bytes(config.generation_id()), "VM generation id");
  auto guest = wrap(std::move(vm), config, request.fencing_token(), std::nullopt);
  FVMM_TRY(static_cast<migration::VmMachine&>(*guest->machine).vm().boot(boot));
  FVMM_TRY(start(*guest, request.run(), began));
  held.fill(std::move(guest));
  return board_.get();
}

Result<v1::WorkerInfo> Worker::clone(const v1::WorkerCloneRequest& request, std::vector<UniqueFd> nets) {
  const auto began = std::chrono::steady_clock::now();
  GuestSlot::Held held = FVMM_TRY(slot_.take("clone"));
  auto pin = FVMM_TRY(memory::OpenTemplate::open(request.template_directory()));
  const v1::MachineState state = FVMM_TRY(pin.machine_state());
  if (state.vcpus_size() == 0) return Error(Errc::kDataLoss, "template " + pin.info().name + " has no vCPU state");
  const auto cpu = FVMM_TRY(vmm::unpack_cpuid(state.vcpus(0).cpuid()));
  std::shared_ptr<vmm::Vm> vm = FVMM_TRY(take_warm(request.config()));
  vm->give_nets(std::move(nets));
  FVMM_TRY(vmm::check_cpuid_fits(cpu, FVMM_TRY(vm->kvm().supported_cpuid())), "template " + pin.info().name);
  FVMM_TRY(dress(vm, request.config(), request.vm_directory(), cpu));
  FVMM_TRY(vm->memory().map_template(memory::resident_or_stored(request.resident_file(), pin)));
  FVMM_TRY(vm->load_state(state), "template " + pin.info().name);
  if (request.config().generation_id() !=
      pin.info().config.generation_id()) {  // a clone; what is recovered is the same
    FVMM_TRY(vm->announce_generation(FVMM_TRY(Id::from_bytes(request.config().generation_id()), "VM generation id")));
  }
  auto guest = wrap(std::move(vm), request.config(), request.fencing_token(), std::move(pin));
  FVMM_TRY(start(*guest, request.run(), began));
  vm_->announce_nets();  // a recovered VM has come to this host; a clone with addresses of its own stays silent
  held.fill(std::move(guest));
  return board_.get();
}

// Everything slow of a migration to here, before READY.
Result<std::unique_ptr<migration::Guest>> Worker::make_replica(const v1::WorkerReceiveRequest& request,
                                                               std::vector<UniqueFd> nets) {
  const v1::PeerHello& hello = request.hello();
  const auto cpu = FVMM_TRY(vmm::unpack_cpuid(hello.cpu().cpuid()));
  std::optional<memory::OpenTemplate> pin;
  if (!request.template_directory().empty()) {
    pin = FVMM_TRY(memory::OpenTemplate::open(request.template_directory()));
    const bool by_way_back = hello.template_().digest().empty() && pin->info().id.raw() == hello.template_().id();
    if (!by_way_back && pin->info().digest.raw() != hello.template_().digest()) {
      return Error(Errc::kFailedPrecondition, "template " + pin->info().name + " has another content here");
    }
  }
  std::shared_ptr<vmm::Vm> vm = FVMM_TRY(take_warm(hello.vm()));
  vm->give_nets(std::move(nets));
  FVMM_TRY(vmm::check_cpuid_fits(cpu, FVMM_TRY(vm->kvm().supported_cpuid())));
  FVMM_TRY(vm->set_tsc_khz(hello.cpu().tsc_khz()));
  FVMM_TRY(dress(vm, hello.vm(), request.vm_directory(), cpu));
  FVMM_TRY(pin ? vm->memory().map_template(memory::resident_or_stored(request.resident_file(), *pin))
               : vm->memory().map_zero());
  return wrap(std::move(vm), hello.vm(), hello.fencing_token(), std::move(pin));
}

}  // namespace fvmm::daemon
