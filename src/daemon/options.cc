#include "daemon/options.h"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <charconv>
#include <iostream>

#include "base/file.h"
#include "base/units.h"
#include "daemon/host_service.h"
#include "daemon/pool.h"
#include "daemon/replicas.h"
#include "memory/digest.h"
#include "memory/layout.h"

namespace fvmm::daemon {
namespace {

constexpr int kExitUsage = 2;

/// Runs the parse; the exit code when there is nothing more to do.
std::optional<int> parse(CLI::App& app, int argc, const char* const* argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  return std::nullopt;
}

void add_seccomp(CLI::App& app, SeccompMode& mode, const std::string& help) {
  app.add_option_function<std::string>(
         "--seccomp", [&mode](const std::string& text) { mode = parse_seccomp(text).value(); }, help)
      ->check(CLI::IsMember({"on", "log", "off"}))
      ->default_str(std::string(to_string(mode)));
}

Invocation parse_worker(int argc, const char* const* argv) {
  CLI::App app("fvmmd worker process (started by fvmmd)");
  WorkerOptions options;
  bool worker = false;
  std::string socket;
  app.add_flag("--worker", worker);
  app.add_option("--socket", socket)->required();
  app.add_option("--memory", options.memory_bytes)->required();
  app.add_option("--vcpus", options.vcpus)->required();
  app.add_option("--ready-fd", options.ready_fd);
  app.add_flag("--test-hooks", options.test_hooks);
  app.add_flag("--complete-instructions", options.complete_instructions);
  add_seccomp(app, options.seccomp, "");
  if (const auto code = parse(app, argc, argv)) return *code;
  options.socket = socket;
  return options;
}

Result<std::filesystem::path> absolute(const std::string& text) {
  std::error_code error;
  auto path = std::filesystem::absolute(text, error);
  if (error) return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is not a path", text));
  return path.lexically_normal();
}

}  // namespace

std::filesystem::path resident_directory(const DaemonOptions& options) {
  if (!options.resident_directory.empty()) return options.resident_directory;
  std::filesystem::path path = options.runtime_directory;
  while (path.has_relative_path() && ::access(path.c_str(), F_OK) != 0) path = path.parent_path();
  struct statfs info {};
  if (::statfs(path.c_str(), &info) == 0 && info.f_type == TMPFS_MAGIC) return options.runtime_directory / "resident";
  const memory::Digest state = memory::hash_bytes(as_bytes(options.state_directory.native()));
  return std::filesystem::path("/dev/shm") / ("fvmm-" + state.hex().substr(0, 16));
}

Result<std::pair<Shape, unsigned>> parse_warm(const std::string& text) {
  const auto times = text.find('x');
  unsigned count = 1;
  if (times != std::string::npos) {
    const char* const end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data() + times + 1, end, count);
    if (error != std::errc{} || rest != end || count == 0) {
      return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is not SIZE or SIZExCOUNT, as in 8Gx2", text));
    }
  }
  Shape shape;
  shape.memory_bytes = FVMM_TRY(parse_bytes(text.substr(0, times)), "--warm");
  FVMM_TRY(memory::Layout::of(shape.memory_bytes), "--warm");
  return std::pair(shape, count);
}

Invocation parse_command_line(int argc, const char* const* argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--worker") return parse_worker(argc, argv);
  }
  CLI::App app("fvmmd: runs virtual machines on templates, and moves them by what differs");
  DaemonOptions options;
  std::string runtime = options.runtime_directory.string();
  std::string state = options.state_directory.string();
  std::vector<std::string> warm;
  std::string resident;
  app.add_option("--runtime-dir", runtime, "sockets; emptied by a reboot")->capture_default_str();
  app.add_option("--state-dir", state, "VM records, logs and templates")->capture_default_str();
  app.add_option("--resident-dir", resident,
                 "resident templates, on tmpfs; default: in the runtime directory if that is, else in /dev/shm");
  app.add_option("--listen", options.listen, "HOST:PORT for other fvmmds; loopback only until peers are authenticated");
  app.add_flag("--test-hooks", options.test_hooks, "allow poke and injected failures (never in production)");
  app.add_flag("--complete-instructions", options.complete_instructions,
               "complete what KVM's emulator cannot do also where KVM is not KVM-PVM");
  add_seccomp(app, options.seccomp,
              "what a worker's system call that is on no list does: kill that worker, be logged, or nothing");
  app.add_option("--warm", warm, "SIZE[xN]: keep N workers of that RAM size ready; may be given several times");
  app.add_option("--warm-workers", options.warm_workers, "workers kept ready for each recently used size")
      ->capture_default_str()
      ->check(CLI::Range(0U, kWarmWorkersMax));
  std::string cpus = options.cpu_template_directory.string();
  app.add_option("--cpu-templates", cpus, "directory of CPU templates, NAME.json each")->capture_default_str();
  std::string staging;
  app.add_option("--replica-staging", staging,
                 fmt::format("RAM of all VMs whose generations may come in at once, as in 8G ({} % of this host's)",
                             kReplicaStagingPercent));
  app.set_config("--config", "", "FILE with lines \"key = value\", keys as the options");
  app.allow_config_extras(false);
  app.set_version_flag("--version", kVersion);
  if (const auto code = parse(app, argc, argv)) return *code;
  const auto fail = [](const Error& error) {
    std::cerr << "fvmmd: " << error.message() << '\n';
    return kExitUsage;
  };
  for (const std::string& text : warm) {
    const auto parsed = parse_warm(text);
    if (!parsed) return fail(parsed.error());
    options.warm[parsed->first] += parsed->second;
  }
  if (!staging.empty()) {
    const auto bytes = parse_bytes(staging);
    if (!bytes) return fail(Error(bytes.error().code(), "--replica-staging: " + bytes.error().message()));
    options.replica_staging_bytes = *bytes;
  }
  const auto runtime_path = absolute(runtime);
  if (!runtime_path) return fail(runtime_path.error());
  const auto state_path = absolute(state);
  if (!state_path) return fail(state_path.error());
  const auto cpus_path = absolute(cpus);
  if (!cpus_path) return fail(cpus_path.error());
  options.cpu_template_directory = *cpus_path;
  if (!resident.empty()) {
    const auto resident_path = absolute(resident);
    if (!resident_path) return fail(resident_path.error());
    options.resident_directory = *resident_path;
  }
  options.runtime_directory = *runtime_path;
  options.state_directory = *state_path;
  return options;
}

}  // namespace fvmm::daemon
