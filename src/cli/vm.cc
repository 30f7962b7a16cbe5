// vm create/start/pause/resume/stop/rm/list/show/console/logs/clone; vm balloon is in balloon.h
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <ostream>

#include "base/id.h"
#include "base/units.h"
#include "cli/balloon.h"
#include "cli/cli11.h"
#include "cli/commands.h"
#include "cli/disk_option.h"
#include "cli/json.h"
#include "cli/net_option.h"
#include "cli/vsock_option.h"

namespace fvmm::cli {
namespace {

struct CreateOptions {
  std::string name, memory, kernel, initrd, cmdline, cpu_template, tracking;
  std::vector<std::string> disks;
  std::vector<std::string> nets;
  std::uint32_t vcpus = 1;
  bool rng = false, console = false, balloon = false, acpi = false;
  std::optional<std::string> vsock;
  bool start = false;
};

void add_tracking(CLI::App& command, std::string& tracking, const std::string& otherwise) {
  command.add_option("--tracking", tracking, "How its delta is known: log or scan; " + otherwise)
      ->check(CLI::IsMember({"log", "scan"}));
}

int create(Session& session, const CreateOptions& options) {
  const auto memory = parse_bytes(options.memory);
  if (!memory) return session.fail(Error(memory.error().code(), "--memory: " + memory.error().message()), kUsage);
  v1::CreateVmRequest request;
  v1::VmConfig& config = *request.mutable_config();
  config.set_name(options.name);
  config.set_memory_bytes(*memory);
  config.set_vcpus(options.vcpus);
  config.set_kernel(absolute_path(options.kernel));
  config.set_initrd(absolute_path(options.initrd));
  config.set_cmdline(options.cmdline);
  config.set_cpu_template(options.cpu_template);
  config.set_tracking(options.tracking);
  config.set_acpi(options.acpi);
  if (options.rng) config.add_virtio()->mutable_rng();
  if (options.console) config.add_virtio()->mutable_console();
  if (options.balloon) config.add_virtio()->mutable_balloon();
  if (options.vsock) {
    auto vsock = parse_vsock(*options.vsock);
    if (!vsock) return session.fail(vsock.error(), kUsage);
    *config.add_virtio()->mutable_vsock() = std::move(*vsock);
  }
  for (const std::string& words : options.disks) {
    auto disk = parse_disk(words);
    if (!disk) return session.fail(disk.error(), kUsage);
    *config.add_disks() = std::move(*disk);
  }
  for (const std::string& text : options.nets) {
    auto net = parse_net(text);
    if (!net) return session.fail(net.error(), kUsage);
    *config.add_nets() = std::move(*net);
  }
  request.set_start(options.start);
  v1::VmInfo answer;
  return session.call("fvmm.v1.Vms/Create", request, answer, kCallTimeout,
                      [&] { session.out() << answer.config().name() << ": " << state_word(answer.state()) << '\n'; });
}

void add_create(CLI::App& vm, Chosen& chosen) {
  auto options = std::make_shared<CreateOptions>();
  CLI::App& command = *vm.add_subcommand("create", "Define a VM, and start it with --start");
  command.add_option("NAME", options->name, "Unique on this host")->required();
  command.add_option("--memory", options->memory, "RAM: 512M, 8G")->required();
  command.add_option("--vcpus", options->vcpus, "vCPUs")->capture_default_str();
  command.add_option("--kernel", options->kernel, "Linux: vmlinux or bzImage; or any ELF kernel with a PVH entry")
      ->required();
  command.add_option("--initrd", options->initrd, "Initial RAM file system");
  command.add_option("--cmdline", options->cmdline, "Kernel command line");
  command.add_option("--cpu-template", options->cpu_template,
                     "Name of a CPU template (cpu-template list); chosen by the host when absent");
  add_tracking(command, options->tracking, "log by default");
  command.add_flag("--acpi", options->acpi, "ACPI tables (hardware-reduced), with a VM generation id");
  command.add_flag("--rng", options->rng, "A virtio random number generator");
  command.add_flag("--console", options->console, "A virtio console (Linux: hvc0), beside the serial port");
  command.add_flag("--balloon", options->balloon, "A virtio balloon: the guest gives memory back (vm balloon)");
  command
      .add_option_function<std::string>(
          "--vsock", [options](const std::string& words) { options->vsock = words; },
          "Programs of host and guest reach each other over a unix socket: [path=SOCKET][,cid=N]; vm show has its path")
      ->expected(0, 1);
  command
      .add_option("--disk", options->disks,
                  "A disk: path=FILE[,base=FILE][,readonly][,shared][,id=NAME]; may be given several times")
      ->allow_extra_args(false);
  command
      .add_option("--net", options->nets,
                  "A network: tap=NAME or unix=PATH, then perhaps ,mac=02:..; may be given several times")
      ->allow_extra_args(false);
  command.add_flag("--start", options->start, "Start it at once");
  command.callback([&chosen, options] { chosen = [options](Session& session) { return create(session, *options); }; });
}

/// A command of one name that answers with the VM.
void add_transition(CLI::App& vm, Chosen& chosen, const std::string& verb, const std::string& method,
                    const std::string& help) {
  auto name = std::make_shared<std::string>();
  CLI::App& command = *vm.add_subcommand(verb, help);
  command.add_option("NAME", *name, "VM")->required();
  command.callback([&chosen, name, method] {
    chosen = [name, method](Session& session) {
      v1::VmName request;
      request.set_name(*name);
      v1::VmInfo answer;
      return session.call("fvmm.v1.Vms/" + method, request, answer, kCallTimeout,
                          [&] { session.out() << *name << ": " << state_word(answer.state()) << '\n'; });
    };
  });
}

void add_remove(CLI::App& vm, Chosen& chosen) {
  auto name = std::make_shared<std::string>();
  CLI::App& command = *vm.add_subcommand("rm", "Remove a stopped or moved VM and what it stored");
  command.add_option("NAME", *name, "VM")->required();
  command.callback([&chosen, name] {
    chosen = [name](Session& session) {
      v1::VmName request;
      request.set_name(*name);
      v1::Empty answer;
      return session.call("fvmm.v1.Vms/Remove", request, answer, kCallTimeout,
                          [&] { session.out() << *name << ": removed\n"; });
    };
  });
}

void add_list_and_show(CLI::App& vm, Chosen& chosen) {
  vm.add_subcommand("list", "All VMs of this host")->callback([&chosen] {
    chosen = [](Session& session) {
      v1::VmList answer;
      return session.call("fvmm.v1.Vms/List", v1::Empty(), answer, kCallTimeout,
                          [&] { session.out() << vm_table(answer); });
    };
  });
  auto name = std::make_shared<std::string>();
  CLI::App& show = *vm.add_subcommand("show", "Everything about one VM");
  show.add_option("NAME", *name, "VM")->required();
  show.callback([&chosen, name] {
    chosen = [name](Session& session) {
      v1::VmName request;
      request.set_name(*name);
      v1::VmInfo answer;
      return session.call("fvmm.v1.Vms/Show", request, answer, kCallTimeout, [&] { print_vm(session.out(), answer); });
    };
  });
}

constexpr std::uint32_t kClonesMax = 256;  // the daemon's limit too (daemon::kClonesMax)

struct CloneOptions {
  std::string name, from, tracking;
  std::vector<std::string> nets;
  std::vector<std::string> disks;
  std::uint32_t count = 1;
  bool start = false;
};

void add_clone(CLI::App& vm, Chosen& chosen) {
  auto options = std::make_shared<CloneOptions>();
  CLI::App& command = *vm.add_subcommand("clone", "New VMs from a template; with --count N they are NAME-1 ... NAME-N");
  command.add_option("NAME", options->name, "Name of the clone")->required();
  command.add_option("--template", options->from, "Template")->required();
  command.add_option("--count", options->count, "How many")->check(CLI::Range(1U, kClonesMax))->capture_default_str();
  add_tracking(command, options->tracking, "the template's when absent");
  command
      .add_option("--net", options->nets,
                  "In place of the template's networks, once for each: as for create; %n is the clone's number")
      ->allow_extra_args(false);
  command
      .add_option(
          "--disk", options->disks,
          "path=FILE[,shared]: where what it writes to a disk of the template goes, once for each disk that the "
          "template holds; %n is the clone's number. Default: in the VM's directory, gone with \"vm rm\"")
      ->allow_extra_args(false);
  command.add_flag("--start", options->start, "Start them at once");
  command.callback([&chosen, options] {
    chosen = [options](Session& session) {
      v1::CloneRequest request;
      request.set_name(options->name);
      request.set_template_(options->from);
      request.set_count(options->count);
      request.set_tracking(options->tracking);
      for (const std::string& text : options->nets) {
        auto net = parse_net(text);
        if (!net) return session.fail(net.error(), kUsage);
        *request.add_nets() = std::move(*net);
      }
      for (const std::string& text : options->disks) {
        auto disk = parse_disk(text);
        if (!disk) return session.fail(disk.error(), kUsage);
        *request.add_disks() = std::move(*disk);
      }
      request.set_start(options->start);
      v1::VmList answer;
      return session.call("fvmm.v1.Vms/Clone", request, answer, kLongCallTimeout,
                          [&] { session.out() << vm_table(answer); });
    };
  });
}

void add_console_and_logs(CLI::App& vm, Chosen& chosen) {
  auto name = std::make_shared<std::string>();
  auto follow = std::make_shared<bool>(false);
  auto virtio = std::make_shared<bool>(false);
  CLI::App& console = *vm.add_subcommand("console", "Talk to the serial console; Ctrl-] leaves");
  console.add_option("NAME", *name, "VM")->required();
  console.add_flag("--virtio", *virtio, "The virtio console instead");
  console.callback([&chosen, name, virtio] {
    chosen = [name, virtio](Session& session) { return vm_console(session, *name, *virtio); };
  });
  CLI::App& logs = *vm.add_subcommand("logs", "Print what the guest wrote to its serial port");
  logs.add_option("NAME", *name, "VM")->required();
  logs.add_flag("--follow,-f", *follow, "Go on until interrupted");
  logs.callback([&chosen, name, follow] {
    chosen = [name, follow](Session& session) { return vm_logs(session, *name, *follow); };
  });
}

std::string template_label(const v1::TemplateRef& ref) {
  if (ref.id().empty()) return "-";
  return ref.generation() == 0 ? ref.name() : fmt::format("{}@{}", ref.name(), ref.generation());
}

std::string detail_of(const v1::VmInfo& vm) {
  if (vm.moved_to().empty()) return vm.detail();
  return vm.detail().empty() ? "moved to " + vm.moved_to() : fmt::format("moved to {}; {}", vm.moved_to(), vm.detail());
}

}  // namespace

std::string absolute_path(const std::string& path) {
  if (path.empty()) return path;
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.lexically_normal().string();
}

std::string state_word(v1::VmState state) {
  return enum_word(v1::VmState_Name(state));
}

std::string vm_table(const v1::VmList& list) {
  std::vector<std::vector<std::string>> rows{{"NAME", "STATE", "MEMORY", "VCPUS", "TEMPLATE", "PID", "DETAIL"}};
  for (const v1::VmInfo& vm : list.vms()) {
    rows.push_back({vm.config().name(), state_word(vm.state()), format_bytes(vm.config().memory_bytes()),
                    std::to_string(vm.config().vcpus()), template_label(vm.template_()),
                    vm.worker_pid() == 0 ? "-" : std::to_string(vm.worker_pid()), detail_of(vm)});
  }
  return align(rows);
}

void print_vm(std::ostream& out, const v1::VmInfo& vm) {
  const v1::VmConfig& config = vm.config();
  const auto id = Id::from_bytes(config.id());
  std::vector<std::vector<std::string>> rows{
      {"name", config.name()},
      {"id", id ? id->hex() : "-"},
      {"state", state_word(vm.state())},
      {"memory", format_bytes(config.memory_bytes())},
      {"vcpus", std::to_string(config.vcpus())},
      {"cpu template", config.cpu_template()},
      {"kernel", config.kernel()},
      {"initrd", config.initrd()},
      {"cmdline", config.cmdline()},
      {"template", template_label(vm.template_())},
      {"tracking", config.tracking().empty() ? "log" : config.tracking()},
      {"delta pages", vm.delta_unknown() ? "not known: found when needed" : std::to_string(vm.delta_pages())},
      {"worker pid", vm.worker_pid() == 0 ? "" : std::to_string(vm.worker_pid())},
      {"seccomp", vm.seccomp()},
      {"console", vm.console_path()},
      {"virtio console", vm.virtio_console_path()},
      {"serial bytes", std::to_string(vm.serial_bytes())},
      {"completed instructions", vm.completed_instructions() > 0 ? std::to_string(vm.completed_instructions()) : ""},
      {"start", vm.start_ms() > 0 ? fmt::format("{:.2f} ms", vm.start_ms()) : ""},
      {"fencing token", std::to_string(vm.fencing_token())},
      {"moved to", vm.moved_to()},
      {"detail", vm.detail()}};
  for (const v1::DiskConfig& disk : config.disks()) rows.push_back({"disk", disk_text(disk)});
  for (int i = 0; i < config.nets_size(); ++i) {
    rows.push_back({fmt::format("net{}", i), net_text(config.nets(i), i < vm.nets_size() ? &vm.nets(i) : nullptr)});
  }
  for (auto& row : balloon_rows(vm)) rows.push_back(std::move(row));
  if (vm.has_vsock()) rows.push_back({"vsock", vsock_text(vm.vsock())});
  std::erase_if(rows, [](const auto& row) { return row[1].empty(); });
  out << align(rows);
}

void add_vm_commands(CLI::App& app, Chosen& chosen) {
  CLI::App& vm = *app.add_subcommand("vm", "Virtual machines of this host");
  vm.require_subcommand(1);
  add_create(vm, chosen);
  add_transition(vm, chosen, "start", "Start", "Start a VM from its kernel");
  add_transition(vm, chosen, "pause", "Pause", "Stop its vCPUs; memory stays");
  add_transition(vm, chosen, "resume", "Resume", "Let a paused VM go on");
  add_transition(vm, chosen, "stop", "Stop", "Power off at once");
  add_remove(vm, chosen);
  add_balloon(vm, chosen);
  add_list_and_show(vm, chosen);
  add_console_and_logs(vm, chosen);
  add_clone(vm, chosen);
}

}  // namespace fvmm::cli
