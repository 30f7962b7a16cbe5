// host show, doctor, and the hidden test hooks
#include <fmt/format.h>

#include <memory>
#include <ostream>

#include "base/units.h"
#include "cli/cli11.h"
#include "cli/commands.h"
#include "cli/doctor.h"
#include "cli/json.h"

namespace fvmm::cli {
namespace {

constexpr std::chrono::seconds kDaemonProbe{2};

int show_host(Session& session) {
  v1::HostInfo host;
  return session.call("fvmm.v1.Host/Info", v1::Empty(), host, kCallTimeout, [&] {
    std::string cpu_templates;
    for (const std::string& name : host.cpu_templates()) cpu_templates += (cpu_templates.empty() ? "" : ", ") + name;
    session.out() << align({{"version", host.version()},
                            {"hostname", host.hostname()},
                            {"memory", format_bytes(host.memory_bytes())},
                            {"available", format_bytes(host.memory_available_bytes())},
                            {"virtualisation", host.pvm() ? "PVM" : "hardware"},
                            {"boot id", host.boot_id()},
                            {"peer listener", host.listen()},
                            {"cpu templates", cpu_templates},
                            {"warm workers", std::to_string(host.warm_workers())}});
  });
}

int doctor(Session& session, const std::string& state_directory) {
  std::vector<Check> checks = judge(probe_host(state_directory));
  v1::HostInfo host;
  if (session.call("fvmm.v1.Host/Info", v1::Empty(), host, kDaemonProbe).ok()) {
    checks.push_back(
        {"fvmmd", Verdict::kOk, fmt::format("version {} at {}", host.version(), session.options().socket), ""});
  }
  session.out() << (session.json() ? doctor_json(checks) : doctor_table(checks));
  return can_run(checks) ? kDone : kFailed;
}

struct Poke {
  std::string vm;
  std::uint64_t flip = 0, capture = 0, replay = 0, drop = 0;
  bool forbidden_call = false;
};

}  // namespace

void add_host_commands(CLI::App& app, Chosen& chosen) {
  CLI::App& host = *app.add_subcommand("host", "The host that fvmmd runs on");
  host.require_subcommand(1);
  host.add_subcommand("show", "Version, memory and addresses")->callback([&chosen] { chosen = show_host; });
  auto state_directory = std::make_shared<std::string>("/var/lib/fvmm");
  CLI::App& command = *app.add_subcommand("doctor", "Say whether this host can run FVMM, item by item with the fix");
  command.add_option("--state-dir", *state_directory, "State directory of fvmmd")->capture_default_str();
  command.callback([&chosen, state_directory] {
    chosen = [state_directory](Session& session) { return doctor(session, *state_directory); };
  });
}

void add_debug_commands(CLI::App& app, Chosen& chosen) {
  CLI::App& debug = *app.add_subcommand("debug", "Test hooks; fvmmd must run with --test-hooks")->group("");
  debug.require_subcommand(1);
  CLI::App& command = *debug.add_subcommand("poke", "Damage one page of a guest on purpose");
  auto poke = std::make_shared<Poke>();
  command.add_option("VM", poke->vm, "VM")->required();
  CLI::Option_group& kinds = *command.add_option_group("kind");
  kinds.add_option("--flip", poke->flip, "Invert one byte of RAM page P");
  kinds.add_option("--capture", poke->capture, "Remember RAM page P");
  kinds.add_option("--replay", poke->replay, "Write back what was remembered of RAM page P");
  kinds.add_option("--drop", poke->drop, "Put back the template's bytes of RAM page P");
  kinds.add_flag("--forbidden-call", poke->forbidden_call,
                 "Let its worker make a system call that its seccomp filter forbids");
  kinds.require_option(1);
  command.callback([&chosen, &command, poke] {
    v1::PokeRequest request;
    request.set_name(poke->vm);
    const auto choose = [&](const char* option, v1::PokeKind kind, std::uint64_t page) {
      if (command.get_option(option)->count() == 0) return;
      request.set_kind(kind);
      request.set_page(page);
    };
    choose("--flip", v1::FLIP, poke->flip);
    choose("--capture", v1::CAPTURE, poke->capture);
    choose("--replay", v1::REPLAY, poke->replay);
    choose("--drop", v1::DROP, poke->drop);
    choose("--forbidden-call", v1::FORBIDDEN_CALL, 0);
    chosen = [request](Session& session) {
      v1::Empty answer;
      return session.call("fvmm.v1.Vms/Poke", request, answer, kCallTimeout, [&] { session.out() << "done\n"; });
    };
  });
}

}  // namespace fvmm::cli
