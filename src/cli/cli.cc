#include "cli/cli.h"

#include <algorithm>
#include <iostream>
#include <optional>

#include "cli/cli11.h"
#include "cli/commands.h"
#include "cli/session.h"

namespace fvmm::cli {
namespace {

/// Whether JSON was asked for, also in a command line that does not parse.
bool wants_json(const std::vector<std::string>& arguments) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--output=json") return true;
    if (arguments[i] == "--output" && i + 1 < arguments.size() && arguments[i + 1] == "json") return true;
  }
  return false;
}

/// CLI11's message, with the words it could not place and the command whose --help says more.
std::string usage_message(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = &app;
  std::string path = "fvmmctl";
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().back();
    path += " " + command->get_name();
  }
  std::string message = error.what();
  for (const std::string& word : app.remaining(true)) {
    if (message.find(word) == std::string::npos) message += "; \"" + word + "\" is not one";
  }
  return message + " (see " + path + " --help)";
}

void add_global_options(CLI::App& app, GlobalOptions& options) {
  app.add_option("--socket", options.socket, "Control socket of fvmmd")->envname("FVMM_SOCKET")->capture_default_str();
  app.add_option("--output", options.output, "How results are printed")
      ->check(CLI::IsMember({"table", "json"}))
      ->capture_default_str();
  app.add_option("--timeout", options.timeout, "Give up waiting for the daemon after this long (60s, 500ms)");
}

}  // namespace

int run(std::vector<std::string> arguments, const Streams& streams) {
  const bool json = wants_json(arguments);
  CLI::App app(
      "fvmmctl: create, clone and migrate VMs of fvmmd\n\n"
      "Exit codes: 0 done; 1 failed, and the VM still runs where it was; 2 usage; 3 daemon unreachable;\n"
      "4 outcome unknown (see: fvmmctl migrate resolve)",
      "fvmmctl");
  GlobalOptions options;
  Chosen chosen;
  app.require_subcommand(1);
  app.fallthrough();  // global options may follow the command
  add_global_options(app, options);
  add_vm_commands(app, chosen);
  add_template_commands(app, chosen);
  add_migrate_command(app, chosen);
  add_replicate_commands(app, chosen);
  add_cpu_template_commands(app, chosen);
  add_host_commands(app, chosen);
  add_debug_commands(app, chosen);
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them last first
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::Success& help) {  // --help
    app.exit(help, streams.out, streams.err);
    return kDone;
  } catch (const CLI::ParseError& error) {
    print_error(streams, json, "INVALID_ARGUMENT", usage_message(app, error));
    return kUsage;
  }
  Session session(options, streams);
  const int code = chosen(session);
  streams.out.flush();
  return code;
}

int run(int argc, char** argv) {
  return run(std::vector<std::string>(argv + 1, argv + argc), Streams{std::cout, std::cerr});
}

}  // namespace fvmm::cli
