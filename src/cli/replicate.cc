// replicate start/stop/status/recover
#include <fmt/format.h>

#include <memory>
#include <ostream>
#include <vector>

#include "base/units.h"
#include "cli/cli11.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/net_option.h"
#include "cli/progress.h"

namespace fvmm::cli {
namespace {

struct Options {
  std::string vm, to, interval, lag_max, buffer, bandwidth, test_hook;
  std::uint64_t dirty_pages = 0;
  bool source_is_dead = false;
  std::vector<std::string> nets;
};

void print_status(std::ostream& out, const v1::ReplicaStatus& status) {
  const auto of = [](std::uint64_t number) { return std::to_string(number); };
  std::vector<std::vector<std::string>> rows{
      {"vm", status.vm()},
      {"to", status.to()},
      {"state", status.state() + (status.detail().empty() ? "" : ": " + status.detail())},
      {"generation", fmt::format("captured {}, sent {}, held {}, sealed {}", status.generation_captured(),
                                 status.generation_sent(), status.generation_held(), status.generation_sealed())},
      {"pages", fmt::format("captured {}, sent {}, acknowledged {}", status.pages_captured(), status.pages_sent(),
                            status.pages_acknowledged())},
      {"sent", format_bytes(status.bytes_sent())},
      {"buffer", fmt::format("{} of {}, full {} times, {:.1f} ms waited", format_bytes(status.buffer_bytes()),
                             format_bytes(status.buffer_bytes_max()), status.buffer_waits(), status.buffer_wait_ms())},
      {"lag",
       fmt::format("{:.1f} ms, {} pages{}", status.lag_ms(), status.lag_pages(), status.lagging() ? ", LAGGING" : "")},
      {"interval", fmt::format("{} ms", status.interval_ms())},
      {"pause", fmt::format("{:.2f} ms, worst {:.2f} ms", status.pause_ms(), status.pause_ms_max())},
      {"reconnects", of(status.reconnects())}};
  out << align(rows);
}

int show(Session& session, const char* method, const google::protobuf::Message& request,
         std::chrono::milliseconds wait) {
  v1::ReplicaStatus answer;
  return session.call(method, request, answer, wait, [&] { print_status(session.out(), answer); });
}

Result<v1::ReplicateRequest> to_request(const Options& options) {
  v1::ReplicateRequest request;
  request.set_vm(options.vm);
  request.set_to(options.to);
  request.set_test_hook(options.test_hook);
  request.set_dirty_pages_max(options.dirty_pages);
  if (!options.interval.empty()) {
    request.set_interval_ms(to_timeout_ms(FVMM_TRY(parse_duration(options.interval), "--interval")));
  }
  if (!options.lag_max.empty()) {
    request.set_lag_ms_max(to_timeout_ms(FVMM_TRY(parse_duration(options.lag_max), "--max-lag")));
  }
  if (!options.buffer.empty()) request.set_buffer_bytes(FVMM_TRY(parse_bytes(options.buffer), "--buffer"));
  if (!options.bandwidth.empty()) {
    request.set_bandwidth_bytes_s(FVMM_TRY(parse_bandwidth(options.bandwidth), "--bandwidth"));
  }
  return request;
}

void add_start(CLI::App& parent, Chosen& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App& command = *parent.add_subcommand("start", "Keep a peer supplied with generations of a running VM");
  command.add_option("VM", options->vm, "VM")->required();
  command.add_option("--to", options->to, "Peer, HOST:PORT")->required();
  command.add_option("--interval", options->interval,
                     "Between two generations (1s); longer where link or peer need it");
  command.add_option("--dirty-pages", options->dirty_pages, "Take one early when so many pages differ");
  command.add_option("--max-lag", options->lag_max,
                     "Generations often enough that the newest sealed one is never older, else LAGGING (10 intervals)");
  command.add_option("--buffer", options->buffer, "Captured pages that may wait for the link (256M)");
  command.add_option("--bandwidth", options->bandwidth, "Limit, such as 1Gbit");
  command.add_option("--test-hook", options->test_hook)->group("");
  command.callback([&chosen, options] {
    chosen = [options](Session& session) {
      const auto request = to_request(*options);
      if (!request) return session.fail(request.error(), kUsage);
      return show(session, "fvmm.v1.Replications/Start", *request, kLongCallTimeout);
    };
  });
}

void add_by_name(CLI::App& parent, Chosen& chosen, const char* verb, const char* help, const char* method) {
  auto name = std::make_shared<std::string>();
  CLI::App& command = *parent.add_subcommand(verb, help);
  command.add_option("VM", *name, "VM")->required();
  command.callback([&chosen, name, method] {
    chosen = [name, method](Session& session) {
      v1::VmName request;
      request.set_name(*name);
      return show(session, method, request, kCallTimeout);
    };
  });
}

void add_recover(CLI::App& parent, Chosen& chosen) {
  auto options = std::make_shared<Options>();
  CLI::App& command =
      *parent.add_subcommand("recover", "Start a VM here, at the peer, from its newest sealed generation");
  command.add_option("VM", options->vm, "VM, by the name it has at its source")->required();
  command.add_flag("--source-is-dead", options->source_is_dead,
                   "You know that it no longer runs there; needed when its source does not answer");
  command.add_option("--net", options->nets,
                     "Where a network is connected here, such as net0:tap=NAME; of others as at its source. May be "
                     "repeated");
  command.callback([&chosen, options] {
    chosen = [options](Session& session) {
      v1::RecoverRequest request;
      request.set_vm(options->vm);
      request.set_source_is_dead(options->source_is_dead);
      for (const std::string& net : options->nets) {
        const auto place = parse_net_place(net);
        if (!place) return session.fail(place.error(), kUsage);
        *request.add_nets() = *place;
      }
      v1::RecoverReport answer;
      return session.call("fvmm.v1.Replications/Recover", request, answer, kLongCallTimeout, [&] {
        session.out() << fmt::format("{}: runs here from generation {} ({}), {:.0f} ms lost, took {:.1f} ms\n",
                                     options->vm, answer.generation(), answer.template_(), answer.lost_ms(),
                                     answer.duration_ms());
      });
    };
  });
}

}  // namespace

void add_replicate_commands(CLI::App& app, Chosen& chosen) {
  CLI::App& noun = *app.add_subcommand("replicate", "Continuous templating of a VM to a peer, and recovery there");
  noun.require_subcommand(1);
  add_start(noun, chosen);
  add_by_name(noun, chosen, "stop", "End it; the peer drops the replica", "fvmm.v1.Replications/Stop");
  add_by_name(noun, chosen, "status", "How far it is, and how far behind", "fvmm.v1.Replications/Status");
  add_recover(noun, chosen);
}

}  // namespace fvmm::cli
