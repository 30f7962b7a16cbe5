// migrate VM --to HOST:PORT, migrate cancel, migrate resolve
#include <fmt/format.h>

#include <memory>
#include <optional>
#include <ostream>

#include "base/units.h"
#include "cli/cli11.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/net_option.h"
#include "cli/progress.h"

namespace fvmm::cli {
namespace {

constexpr std::chrono::seconds kMigrationTimeout{60};
constexpr std::uint32_t kMigrateConnectionsMax = 8;  // the daemon's limit too (migration::kConnectionsMax)
constexpr std::chrono::seconds kResultGrace{
    30};  // the daemon ends a migration by its timeout, then still has to say so

struct Options {
  std::string vm, to, mode = "auto", max_downtime, timeout, bandwidth, test_hook;
  std::vector<std::string> nets;
  std::uint32_t connections = 0;
  bool allow_throttle = false;
};

std::string result_json(const v1::MigrateResult& result) {
  JsonObject phases;
  for (const v1::Phase& phase : result.phases()) phases.add(phase.name(), phase.ms());
  JsonObject object;
  object.add("result", result.result()).add("mode", result.mode());
  object.add("duration_ms", result.duration_ms()).add("downtime_ms", result.downtime_ms());
  object.add("setup_ms", result.setup_ms());
  object.raw("rounds", std::to_string(result.rounds())).raw("pages_sent", std::to_string(result.pages_sent()));
  object.raw("bytes_sent", std::to_string(result.bytes_sent()));
  object.add("template", result.template_()).raw("generation", std::to_string(result.generation()));
  object.raw("phases", phases.str()).add("error", result.error()).add("why_mode", result.why_mode());
  object.add("way_back", result.way_back());
  object.raw("throttle_percent", std::to_string(result.throttle_percent()));
  object.add("template_push_ms", result.template_push_ms());
  object.raw("template_push_bytes", std::to_string(result.template_push_bytes()));
  return object.add("teardown_ms", result.teardown_ms()).str();
}

void print_result(std::ostream& out, const Options& options, const v1::MigrateResult& result) {
  out << fmt::format("{}: {} ({}): duration {:.2f} ms, downtime {:.2f} ms, {} pages, {} sent, {} rounds\n", options.vm,
                     result.result(), result.mode(), result.duration_ms(), result.downtime_ms(), result.pages_sent(),
                     format_bytes(result.bytes_sent()), result.rounds());
  if (!result.why_mode().empty()) out << "  mode: " << result.why_mode() << '\n';
  if (result.template_push_ms() > 0) {
    out << fmt::format("  template {} pushed first: {:.1f} ms, {}\n", result.template_(), result.template_push_ms(),
                       format_bytes(result.template_push_bytes()));
  }
  if (!result.way_back().empty()) out << "  kept here for the way back: " << result.way_back() << '\n';
  if (result.throttle_percent() > 0) {
    out << fmt::format("  guest held back by {} % of its time at the end\n", result.throttle_percent());
  }
  for (const v1::Phase& phase : result.phases())
    out << fmt::format("  {:<24} {:>10.3f} ms\n", phase.name(), phase.ms());
}

int report(Session& session, const Options& options, const v1::MigrateResult& result) {
  if (session.json()) {
    session.out() << result_json(result) << '\n';
  } else {
    print_result(session.out(), options, result);
  }
  if (result.result() == "completed") return kDone;
  session.err() << fmt::format("fvmmctl: migrate {}: {}: {}\n", options.vm, result.result(), result.error());
  if (result.result() == "aborted") return kFailed;
  session.err() << fmt::format("fvmmctl: where {} runs is not known; try: fvmmctl migrate resolve {}\n", options.vm,
                               options.vm);
  return kUnknown;
}

void show(Progress& progress, const Options& options, const v1::MigrateEvent& event) {
  std::string text = fmt::format("migrate {}: {}", options.vm, event.phase());
  if (event.round() > 0) text += fmt::format(", round {}", event.round());
  if (event.pages_sent() > 0) text += fmt::format(", {} pages sent, {} left", event.pages_sent(), event.pages_left());
  if (event.rate_mbytes_s() > 0) text += fmt::format(", {:.0f} MB/s", event.rate_mbytes_s());
  if (event.dirty_mbytes_s() > 0) text += fmt::format(", guest dirties {:.0f} MB/s", event.dirty_mbytes_s());
  if (event.expected_downtime_ms() > 0) text += fmt::format(", downtime now {:.1f} ms", event.expected_downtime_ms());
  if (event.throttle_percent() > 0) text += fmt::format(", held back {} %", event.throttle_percent());
  progress.show(text, event.pages_sent(), event.pages_sent() + event.pages_left());
}

Result<v1::MigrateRequest> to_request(const Options& options) {
  v1::MigrateRequest request;
  request.set_vm(options.vm);
  request.set_to(options.to);
  request.set_mode(options.mode);
  request.set_connections(options.connections);
  request.set_test_hook(options.test_hook);
  const std::chrono::microseconds timeout =
      options.timeout.empty() ? kMigrationTimeout : FVMM_TRY(parse_duration(options.timeout), "--timeout");
  request.set_timeout_ms(to_timeout_ms(timeout));
  request.set_allow_throttle(options.allow_throttle);
  for (const std::string& net : options.nets) *request.add_nets() = FVMM_TRY(parse_net_place(net));
  if (!options.bandwidth.empty()) {
    request.set_bandwidth_bytes_s(FVMM_TRY(parse_bandwidth(options.bandwidth), "--bandwidth"));
  }
  if (!options.max_downtime.empty()) {
    const auto downtime = FVMM_TRY(parse_duration(options.max_downtime), "--max-downtime");
    if (downtime.count() == 0 || downtime > std::chrono::seconds(60)) {
      return Error(Errc::kInvalidArgument, "--max-downtime: between 1us and 60s");
    }
    request.set_max_downtime_us(static_cast<std::uint32_t>(downtime.count()));
  }
  return request;
}

int migrate(Session& session, const Options& options) {
  if (options.vm.empty() || options.to.empty()) {
    return session.fail(
        Error(Errc::kInvalidArgument, "migrate needs a VM and --to HOST:PORT (see fvmmctl migrate --help)"), kUsage);
  }
  const auto request = to_request(options);
  if (!request) return session.fail(request.error(), kUsage);
  if (const auto reached = session.client(); !reached) return session.fail(reached.error());
  Progress progress(session.streams());
  std::optional<v1::MigrateResult> result;
  const Status status = session.stream(
      "fvmm.v1.Migrations/Migrate", *request,
      [&](const std::string& bytes, bool last) {
        v1::MigrateEvent event;
        if (!event.ParseFromString(bytes)) return !last;
        if (event.has_result()) {
          result = event.result();
        } else {
          show(progress, options, event);
        }
        return true;
      },
      std::chrono::milliseconds(request->timeout_ms()) + kResultGrace);
  progress.end();
  if (result) return report(session, options, *result);
  if (!status) return session.fail(status.error(), session.answered() ? kFailed : kUnknown);
  return session.fail(Error(Errc::kInternal, fmt::format("migrate {}: the daemon gave no result", options.vm)),
                      kUnknown);
}

void add_cancel(CLI::App& parent, Chosen& chosen) {
  auto name = std::make_shared<std::string>();
  CLI::App& command = *parent.add_subcommand("cancel", "Call a migration off; the VM stays here");
  command.add_option("VM", *name, "VM")->required();
  command.callback([&chosen, name] {
    chosen = [name](Session& session) {
      v1::VmName request;
      request.set_name(*name);
      v1::Empty answer;
      return session.call("fvmm.v1.Migrations/Cancel", request, answer, kCallTimeout,
                          [&] { session.out() << *name << ": migration cancelled\n"; });
    };
  });
}

void add_resolve(CLI::App& parent, Chosen& chosen) {
  auto name = std::make_shared<std::string>();
  auto start = std::make_shared<bool>(false);
  auto discard = std::make_shared<bool>(false);
  CLI::App& command =
      *parent.add_subcommand("resolve", "Settle a hand-over whose outcome is not known, by asking the peer");
  command.add_option("VM", *name, "VM")->required();
  CLI::Option* force =
      command.add_flag("--force-start-here", *start, "Run it here; can make two runners if the peer runs it too");
  command.add_flag("--force-discard", *discard, "Give it up here; can lose it if the peer does not run it")
      ->excludes(force);
  command.callback([&chosen, name, start, discard] {
    chosen = [name, start, discard](Session& session) -> int {
      v1::ResolveRequest ask;
      ask.set_vm(*name);
      ask.set_force_start_here(*start);
      ask.set_force_discard(*discard);
      v1::ResolveReport answer;
      const int code = session.call("fvmm.v1.Migrations/Resolve", ask, answer, kCallTimeout, [&] {
        session.out() << fmt::format("{}: {}{}{}\n", *name, answer.outcome(), answer.detail().empty() ? "" : ": ",
                                     answer.detail());
      });
      if (code != kDone || answer.outcome() != "unsettled") return code;
      session.err() << fmt::format("fvmmctl: where {} runs is still not known\n", *name);
      return kUnknown;
    };
  });
}

}  // namespace

void add_migrate_command(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App& command =
      *app.add_subcommand("migrate",
                          "Move a VM to a peer (migrate VM --to HOST:PORT), or cancel or resolve a move.\n"
                          "A VM named cancel or resolve comes after two dashes: migrate --to HOST:PORT -- cancel");
  command.require_subcommand(0, 1);
  add_cancel(command, chosen);
  add_resolve(command, chosen);
  command.add_option("VM", options->vm, "VM");
  command.add_option("--to", options->to, "Peer, HOST:PORT");
  command.add_option("--mode", options->mode, "How")
      ->check(CLI::IsMember({"auto", "suspend", "precopy", "live"}))
      ->capture_default_str();
  command.add_option("--connections", options->connections, "Data connections; chosen when absent")
      ->check(CLI::Range(1U, kMigrateConnectionsMax));
  command.add_option("--max-downtime", options->max_downtime, "Pause only when the rest fits this (5ms)");
  command.add_option("--timeout", options->timeout, "Call it off after this long (60s)");
  command.add_option("--bandwidth", options->bandwidth, "Limit over all connections, such as 1Gbit");
  command.add_flag("--allow-throttle", options->allow_throttle,
                   "Slow the guest down, step by step, when it dirties memory faster than the link carries it");
  command
      .add_option("--net", options->nets,
                  "Where a network is connected there, such as net0:tap=NAME; of others as here. May be repeated")
      ->allow_extra_args(false);
  command.add_option("--test-hook", options->test_hook)->group("");
  command.callback([&chosen, &command, options] {
    if (!command.get_subcommands().empty()) return;  // cancel or resolve was chosen
    chosen = [options](Session& session) { return migrate(session, *options); };
  });
}

}  // namespace fvmm::cli
