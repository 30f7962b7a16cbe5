// Each command against a daemon that only records what it is asked: what is sent, what is printed, how it ends.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <map>
#include <mutex>
#include <sstream>

#include "base/units.h"
#include "cli/cli.h"
#include "control/unix_socket.h"
#include "proto/control.pb.h"
#include "support/served.h"

namespace fvmm::cli {
namespace {

using control::Call;
using control::Server;

struct Ran {
  int code = -1;
  std::string out;
  std::string err;
};

Ran run_with(const std::string& socket, std::vector<std::string> arguments) {
  std::ostringstream out;
  std::ostringstream err;
  arguments.insert(arguments.begin(), {"--socket", socket});
  Ran ran;
  ran.code = run(std::move(arguments), Streams{out, err, -1, -1, -1});
  ran.out = out.str();
  ran.err = err.str();
  return ran;
}

/// Answers each method with what the test prepared and keeps the last request.
class CliCommands : public testing::Test {
 protected:
  template <class Request, class Response>
  void method(Server& server, const std::string& name) {
    const std::string full = "fvmm.v1." + name;
    server.unary<Request, Response>(full, [this, full](Call& call, const Request& request) -> Result<Response> {
      const std::lock_guard lock(mutex_);
      last_method_ = full;
      last_request_ = request.ShortDebugString();
      left_ms_ = call.deadline().left() / std::chrono::milliseconds(1);
      if (error_) return *error_;
      Response response;
      response.ParseFromString(answer_);
      return response;
    });
  }
  void SetUp() override {
    served_ = std::make_unique<test::Served>([this](Server& server) {
      using namespace v1;
      method<CreateVmRequest, VmInfo>(server, "Vms/Create");
      for (const char* verb : {"Start", "Pause", "Resume", "Stop", "Show"}) {
        method<VmName, VmInfo>(server, std::string("Vms/") + verb);
      }
      method<VmName, Empty>(server, "Vms/Remove");
      method<Empty, VmList>(server, "Vms/List");
      method<CloneRequest, VmList>(server, "Vms/Clone");
      method<BalloonRequest, VmInfo>(server, "Vms/Balloon");
      method<PokeRequest, Empty>(server, "Vms/Poke");
      method<CreateTemplateRequest, TemplateInfo>(server, "Templates/Create");
      method<Empty, TemplateList>(server, "Templates/List");
      method<TemplateName, TemplateInfo>(server, "Templates/Show");
      method<PushRequest, PushEvent>(server, "Templates/Push");
      method<ImportRequest, TemplateInfo>(server, "Templates/Import");
      method<TemplateName, Empty>(server, "Templates/Remove");
      method<TemplateName, VerifyReport>(server, "Templates/Verify");
      method<VmName, Empty>(server, "Migrations/Cancel");
      method<ResolveRequest, ResolveReport>(server, "Migrations/Resolve");
      method<Empty, HostInfo>(server, "Host/Info");
      server.stream<LogsRequest, LogChunk>("fvmm.v1.Vms/Logs",
                                           [this](Call& call, const LogsRequest& request) -> Result<LogChunk> {
                                             last_request_ = request.ShortDebugString();
                                             LogChunk chunk;
                                             chunk.set_data(std::string("boot\n\0raw", 9));
                                             FVMM_TRY(call.send(chunk));
                                             chunk.set_data("end");
                                             return chunk;
                                           });
      server.stream<MigrateRequest, MigrateEvent>(
          "fvmm.v1.Migrations/Migrate", [this](Call& call, const MigrateRequest& request) -> Result<MigrateEvent> {
            last_request_ = request.ShortDebugString();
            if (error_) return *error_;
            MigrateEvent progress;
            progress.set_phase("rounds");
            progress.set_round(1);
            FVMM_TRY(call.send(progress));
            MigrateEvent last;
            last.ParseFromString(answer_);
            return last;
          });
    });
  }

  Ran run(std::vector<std::string> arguments) { return run_with(served_->socket().string(), std::move(arguments)); }
  void answer(const google::protobuf::Message& message) { answer_ = message.SerializeAsString(); }
  /// Runs the command, which must succeed, and returns the request that the daemon saw.
  std::string sent(std::vector<std::string> arguments) {
    last_request_.clear();
    const Ran ran = run(std::move(arguments));
    EXPECT_EQ(ran.code, kDone) << ran.err;
    return last_request_;
  }

  std::mutex mutex_;
  std::string answer_;
  std::optional<Error> error_;
  std::string last_method_;
  std::string last_request_;
  std::int64_t left_ms_ = 0;
  std::unique_ptr<test::Served> served_;
};

TEST_F(CliCommands, CreateSendsEveryOptionWithAbsolutePaths) {
  EXPECT_EQ(sent({"vm", "create", "web1", "--memory", "8G", "--vcpus", "1", "--kernel", "/boot/x/../guest", "--initrd",
                  "/i", "--cmdline", "console=ttyS0 quiet", "--cpu-template", "pvm", "--tracking", "scan", "--start"}),
            "config { name: \"web1\" memory_bytes: 8589934592 vcpus: 1 kernel: \"/boot/guest\" initrd: \"/i\" cmdline: "
            "\"console=ttyS0 quiet\" cpu_template: \"pvm\" tracking: \"scan\" } start: true");
  const std::string relative = sent({"vm", "create", "web1", "--memory", "16M", "--kernel", "guest.elf"});
  EXPECT_NE(relative.find("kernel: \"" + (std::filesystem::current_path() / "guest.elf").string() + "\""),
            std::string::npos);
  EXPECT_EQ(relative.find("initrd"), std::string::npos);
  EXPECT_EQ(relative.find("virtio {"), std::string::npos);
  const std::string devices =
      sent({"vm", "create", "v", "--memory", "16M", "--kernel", "/k", "--rng", "--console", "--balloon"});
  EXPECT_NE(devices.find("virtio { rng { } } virtio { console { } } virtio { balloon { } }"), std::string::npos)
      << devices;
  const std::vector<std::string> create{"vm", "create", "--memory", "16M", "--kernel", "/k"};
  const auto with = [&](std::vector<std::string> words) {
    words.insert(words.begin(), create.begin(), create.end());
    return words;
  };
  for (const auto& words : {with({"v", "--vsock"}), with({"--vsock", "v"}), with({"--vsock", "--start", "v"})}) {
    EXPECT_NE(sent(words).find("virtio { vsock { } }"), std::string::npos) << sent(words);
  }
  EXPECT_NE(sent(with({"v", "--vsock", "path=/s,cid=9"})).find("vsock { cid: 9 path: \"/s\" }"), std::string::npos);
  EXPECT_EQ(run(with({"v", "--vsock", "cid=1"})).code, kUsage);
  const std::string disks = sent({"vm", "create", "v", "--memory", "16M", "--kernel", "/k", "--disk", "path=/a,base=/b",
                                  "--disk", "path=/c,readonly,shared"});
  EXPECT_NE(disks.find("disks { path: \"/a\" base: \"/b\" } disks { path: \"/c\" readonly: true shared: true }"),
            std::string::npos)
      << disks;
  EXPECT_EQ(run({"vm", "create", "v", "--memory", "16M", "--kernel", "/k", "--disk", "readonly"}).code, kUsage);
  const std::string nets =
      sent({"vm", "create", "v", "--memory", "16M", "--kernel", "/k", "--net", "tap=a", "--net", "unix=/s"});
  EXPECT_NE(nets.find("nets { tap: \"a\" } nets { socket: \"/s\" }"), std::string::npos) << nets;
}

TEST_F(CliCommands, BalloonSendsItsTargetInBytesAndShowsWhatComesOfIt) {
  v1::VmInfo info;
  info.mutable_config()->add_virtio()->mutable_balloon();
  EXPECT_EQ(sent({"vm", "balloon", "web1", "--target", "512M"}), "name: \"web1\" target_bytes: 536870912");
  EXPECT_EQ(sent({"vm", "balloon", "web1", "--target", "0"}), "name: \"web1\"");
  EXPECT_EQ(run({"vm", "balloon", "web1", "--target", "much"}).code, kUsage);
  EXPECT_EQ(run({"vm", "balloon", "web1"}).code, kUsage);
  answer(info);
  EXPECT_NE(run({"vm", "show", "web1"}).out.find(" yes\n"), std::string::npos) << "not running";
  v1::BalloonInfo& balloon = *info.mutable_balloon();
  balloon.set_target_bytes(512 * kMiB);
  balloon.set_actual_bytes(2 * kMiB);
  balloon.set_given_back_pages(700);
  v1::BalloonStatistic& one = *balloon.add_statistics();
  one.set_name("free_memory");
  one.set_value(12345);
  answer(info);
  EXPECT_EQ(run({"vm", "balloon", "web1", "--target", "512M"}).out, "web1: balloon: target 512 MiB, actual 2 MiB\n");
  const std::string shown = run({"vm", "show", "web1"}).out;
  for (const char* const text : {"target 512 MiB, actual 2 MiB", "700 given back\n", "guest free_memory", "12345"}) {
    EXPECT_NE(shown.find(text), std::string::npos) << text << " in\n" << shown;
  }
  balloon.set_not_given_back_pages(8);
  answer(info);
  EXPECT_NE(run({"vm", "show", "web1"}).out.find("700 given back, 8 not\n"), std::string::npos);
}

TEST_F(CliCommands, VerbsOnOneVmCallTheirMethod) {
  const std::map<std::string, std::string> methods{{"start", "Start"}, {"pause", "Pause"}, {"resume", "Resume"},
                                                   {"stop", "Stop"},   {"rm", "Remove"},   {"show", "Show"}};
  for (const auto& [verb, method] : methods) {
    EXPECT_EQ(sent({"vm", verb, "web1"}), "name: \"web1\"") << verb;
    EXPECT_EQ(last_method_, "fvmm.v1.Vms/" + method);
  }
}

TEST_F(CliCommands, VmMayBeNamedLikeACommand) {
  EXPECT_EQ(sent({"vm", "start", "vm"}), "name: \"vm\"");
  EXPECT_EQ(sent({"vm", "start", "template"}), "name: \"template\"");
  EXPECT_EQ(sent({"vm", "start", "list"}), "name: \"list\"");
}

TEST_F(CliCommands, ListIsATableWithTheseColumns) {
  v1::VmList list;
  v1::VmInfo& running = *list.add_vms();
  running.mutable_config()->set_name("web1");
  running.mutable_config()->set_memory_bytes(8589934592);
  running.mutable_config()->set_vcpus(1);
  running.set_state(v1::VM_RUNNING);
  running.set_worker_pid(4711);
  v1::VmInfo& moved = *list.add_vms();
  moved.mutable_config()->set_name("a");
  moved.mutable_config()->set_memory_bytes(16777216);
  moved.mutable_config()->set_vcpus(1);
  moved.set_state(v1::VM_MOVED);
  moved.set_moved_to("127.0.0.1:7001");
  moved.mutable_template_()->set_id(std::string(16, 'i'));
  moved.mutable_template_()->set_name("base");
  moved.mutable_template_()->set_generation(3);
  answer(list);
  const Ran ran = run({"vm", "list"});
  EXPECT_EQ(ran.code, kDone);
  EXPECT_EQ(ran.out,
            "NAME  STATE    MEMORY  VCPUS  TEMPLATE  PID   DETAIL\n"
            "web1  running  8 GiB   1      -         4711\n"
            "a     moved    16 MiB  1      base@3    -     moved to 127.0.0.1:7001\n");
  EXPECT_EQ(ran.err, "");
}

TEST_F(CliCommands, GlobalOptionsMayFollowTheCommand) {
  const Ran ran = run({"vm", "list", "--output", "json"});
  EXPECT_EQ(ran.code, kDone) << ran.err;
  EXPECT_EQ(ran.out, "{\"vms\":[]}\n");
}

TEST_F(CliCommands, CloneSendsCountAndStart) {
  EXPECT_EQ(sent({"vm", "clone", "w", "--template", "base", "--count", "100", "--start"}),
            "name: \"w\" template: \"base\" start: true count: 100");
  EXPECT_EQ(sent({"vm", "clone", "w", "--template", "base"}), "name: \"w\" template: \"base\" count: 1");
  EXPECT_EQ(sent({"vm", "clone", "w", "--template", "base", "--net", "tap=w-%n"}),
            "name: \"w\" template: \"base\" count: 1 nets { tap: \"w-%n\" }");
}

TEST_F(CliCommands, LogsArePrintedAsTheyAre) {
  const Ran ran = run({"vm", "logs", "web1", "--follow"});
  EXPECT_EQ(ran.code, kDone) << ran.err;
  EXPECT_EQ(ran.out, std::string("boot\n\0rawend", 12));
  EXPECT_EQ(last_request_, "name: \"web1\" follow: true");
}

TEST_F(CliCommands, TemplateCommandsSendTheirArguments) {
  EXPECT_EQ(sent({"template", "create", "base", "--from", "web1", "--engine", "stop"}),
            "name: \"base\" vm: \"web1\" engine: \"stop\"");
  sent({"template", "list"});
  EXPECT_EQ(last_method_, "fvmm.v1.Templates/List");
  EXPECT_EQ(sent({"template", "show", "base"}), "name: \"base\"");
  EXPECT_EQ(sent({"template", "rm", "base"}), "name: \"base\"");
  EXPECT_EQ(last_method_, "fvmm.v1.Templates/Remove");
  EXPECT_EQ(sent({"template", "push", "base", "--to", "127.0.0.1:7001", "--timeout", "90s"}),
            "name: \"base\" to: \"127.0.0.1:7001\" timeout_ms: 90000");
  EXPECT_EQ(sent({"template", "import", "/var/lib/a/", "--link"}), "directory: \"/var/lib/a/\" link: true");
}

TEST_F(CliCommands, VerifyOfADamagedTemplateFails) {
  v1::VerifyReport report;
  report.set_pages_bad(1);
  report.set_detail("page 7");
  answer(report);
  const Ran bad = run({"template", "verify", "base"});
  EXPECT_EQ(bad.code, kFailed);
  EXPECT_NE(bad.err.find("page 7"), std::string::npos);
  report.set_good(true);
  answer(report);
  EXPECT_EQ(run({"template", "verify", "base"}).code, kDone);
}

TEST_F(CliCommands, MigrateSendsEveryOption) {
  v1::MigrateEvent done;
  done.mutable_result()->set_result("completed");
  answer(done);
  EXPECT_EQ(sent({"migrate", "web1", "--to", "127.0.0.1:7001"}),
            "vm: \"web1\" to: \"127.0.0.1:7001\" mode: \"auto\" timeout_ms: 60000");
  EXPECT_EQ(
      sent({"migrate", "web1", "--to", "h:1", "--mode", "precopy", "--connections", "4", "--max-downtime", "5ms",
            "--timeout", "2m", "--test-hook", "cut:commit", "--net", "net0:tap=b"}),
      "vm: \"web1\" to: \"h:1\" mode: \"precopy\" connections: 4 max_downtime_us: 5000 timeout_ms: 120000 test_hook: "
      "\"cut:commit\" nets { id: \"net0\" net { tap: \"b\" } }");
}

TEST_F(CliCommands, MigrateJsonIsOneObjectAndProgressGoesToStandardError) {  // golden: scripts rely on it
  v1::MigrateEvent event;
  v1::MigrateResult& result = *event.mutable_result();
  result.set_result("completed");
  result.set_mode("suspend");
  result.set_duration_ms(12.5);
  result.set_downtime_ms(1.25);
  result.set_setup_ms(3);
  result.set_rounds(1);
  result.set_pages_sent(100);
  result.set_bytes_sent(409600);
  result.set_template_("base");
  result.set_generation(2);
  v1::Phase& phase = *result.add_phases();
  phase.set_name("pause");
  phase.set_ms(0.5);
  result.set_why_mode("asked for");
  result.set_teardown_ms(20);
  answer(event);
  const Ran ran = run({"--output", "json", "migrate", "web1", "--to", "h:1"});
  EXPECT_EQ(ran.code, kDone);
  EXPECT_EQ(
      ran.out,
      "{\"result\":\"completed\",\"mode\":\"suspend\",\"duration_ms\":12.5,\"downtime_ms\":1.25,\"setup_ms\":3,"
      "\"rounds\":1,\"pages_sent\":100,\"bytes_sent\":409600,\"template\":\"base\",\"generation\":2,"
      "\"phases\":{\"pause\":0.5},\"error\":\"\",\"why_mode\":\"asked for\",\"way_back\":\"\",\"throttle_percent\":0,"
      "\"template_push_ms\":0,\"template_push_bytes\":0,\"teardown_ms\":20}\n");
  EXPECT_EQ(ran.err, "migrate web1: rounds, round 1\n");
}

TEST_F(CliCommands, MigrateExitCodeSaysWhereTheVmRuns) {
  const std::map<std::string, int> codes{
      {"completed", kDone}, {"aborted", kFailed}, {"unknown", kUnknown}, {"something new", kUnknown}};
  for (const auto& [word, code] : codes) {
    v1::MigrateEvent event;
    event.mutable_result()->set_result(word);
    answer(event);
    EXPECT_EQ(run({"migrate", "web1", "--to", "h:1"}).code, code) << word;
  }
  answer(v1::MigrateEvent());  // a last event without a result
  EXPECT_EQ(run({"migrate", "web1", "--to", "h:1"}).code, kUnknown);
}

TEST_F(CliCommands, ResolveThatSettlesNothingIsAnOutcomeNotKnown) {
  const std::map<std::string, int> codes{
      {"runs here", kDone}, {"moved", kDone}, {"lost", kDone}, {"unsettled", kUnknown}};
  for (const auto& [word, code] : codes) {
    v1::ResolveReport report;
    report.set_outcome(word);
    answer(report);
    const Ran ran = run({"migrate", "resolve", "web1"});
    EXPECT_EQ(ran.code, code) << word;
    EXPECT_EQ(ran.err.find("still not known") != std::string::npos, code == kUnknown) << ran.err;
  }
}

TEST_F(CliCommands, MigrateRefusedByTheDaemonLeavesTheVmWhereItWas) {
  for (const Errc code : {Errc::kUnimplemented, Errc::kNotFound, Errc::kUnavailable, Errc::kDeadlineExceeded}) {
    error_ = Error(code, "peer not listening");
    const Ran ran = run({"migrate", "web1", "--to", "h:1", "--output", "json"});
    EXPECT_EQ(ran.code, kFailed);
    EXPECT_EQ(ran.out,
              "{\"error\":{\"code\":\"" + std::string(to_string(code)) + "\",\"message\":\"peer not listening\"}}\n");
  }
}

TEST_F(CliCommands, MigrateHasItsSubcommandsAndVmsMayHaveTheirNames) {
  EXPECT_EQ(sent({"migrate", "cancel", "web1"}), "name: \"web1\"");
  EXPECT_EQ(last_method_, "fvmm.v1.Migrations/Cancel");
  EXPECT_EQ(sent({"migrate", "resolve", "web1"}), "vm: \"web1\"");
  EXPECT_EQ(sent({"migrate", "resolve", "web1", "--force-start-here"}), "vm: \"web1\" force_start_here: true");
  EXPECT_EQ(sent({"migrate", "resolve", "web1", "--force-discard"}), "vm: \"web1\" force_discard: true");
  EXPECT_EQ(sent({"migrate", "cancel", "cancel"}), "name: \"cancel\"");
  v1::MigrateEvent done;
  done.mutable_result()->set_result("completed");
  answer(done);
  EXPECT_EQ(sent({"migrate", "--to", "h:1", "--", "cancel"}),
            "vm: \"cancel\" to: \"h:1\" mode: \"auto\" timeout_ms: 60000");
}

TEST_F(CliCommands, PokeSendsItsKindAndPage) {
  EXPECT_EQ(sent({"debug", "poke", "web1", "--flip", "9"}), "name: \"web1\" kind: FLIP page: 9");
  EXPECT_EQ(sent({"debug", "poke", "web1", "--capture", "9"}), "name: \"web1\" kind: CAPTURE page: 9");
  EXPECT_EQ(sent({"debug", "poke", "web1", "--replay", "9"}), "name: \"web1\" kind: REPLAY page: 9");
  EXPECT_EQ(sent({"debug", "poke", "web1", "--drop", "0"}), "name: \"web1\" kind: DROP");
  EXPECT_EQ(run({"debug", "poke", "web1"}).code, kUsage);
  EXPECT_EQ(run({"debug", "poke", "web1", "--flip", "1", "--drop", "2"}).code, kUsage);
}

TEST_F(CliCommands, ErrorOfTheDaemonIsPrintedWithItsCode) {
  error_ = Error(Errc::kNotFound, "no VM \"web1\"");
  const Ran ran = run({"vm", "show", "web1", "--output", "json"});
  EXPECT_EQ(ran.code, kFailed);
  EXPECT_EQ(ran.err, "fvmmctl: no VM \"web1\"\n");
  EXPECT_EQ(ran.out, "{\"error\":{\"code\":\"NOT_FOUND\",\"message\":\"no VM \\\"web1\\\"\"}}\n");
  error_ = Error(Errc::kUnavailable, "the worker is gone");  // the daemon says it: it was reached
  EXPECT_EQ(run({"vm", "show", "web1"}).code, kFailed);
}

TEST_F(CliCommands, TimeoutBecomesTheDeadline) {
  sent({"vm", "list", "--timeout", "2h"});
  EXPECT_GT(left_ms_, 3'600'000);
  sent({"vm", "list"});
  EXPECT_LE(left_ms_, 30'000);
  const Ran ran = run({"vm", "list", "--timeout", "5"});
  EXPECT_EQ(ran.code, kUsage);
  EXPECT_NE(ran.err.find("--timeout"), std::string::npos);
}

TEST_F(CliCommands, HostAndDoctorNameTheDaemonsVersion) {
  v1::HostInfo host;
  host.set_version("0.1.0-test");
  answer(host);
  EXPECT_NE(run({"host", "show"}).out.find("0.1.0-test"), std::string::npos);
  EXPECT_NE(run({"doctor", "--output", "json"}).out.find("version 0.1.0-test"), std::string::npos);
}

TEST_F(CliCommands, ConsoleOfAVmThatIsOffSaysWhatToDo) {
  v1::VmInfo vm;
  vm.set_state(v1::VM_STOPPED);
  answer(vm);
  const Ran ran = run({"vm", "console", "web1"});
  EXPECT_EQ(ran.code, kFailed);
  EXPECT_NE(ran.err.find("fvmmctl vm start web1"), std::string::npos);
}

TEST_F(CliCommands, UsageErrorsAreCode2AndNameTheMistake) {
  struct Case {
    std::vector<std::string> arguments;
    std::string named;
  };
  const std::vector<Case> cases{
      {{}, "subcommand"},
      {{"vm"}, "subcommand"},
      {{"vm", "lst"}, "lst"},
      {{"vm", "show"}, "NAME"},
      {{"vm", "show", "a", "b"}, "b"},
      {{"vm", "list", "--outptu", "json"}, "--outptu"},
      {{"vm", "list", "--output", "xml"}, "xml"},
      {{"vm", "create", "a", "--kernel", "k"}, "--memory"},
      {{"vm", "create", "a", "--kernel", "k", "--memory", "8X"}, "8X"},
      {{"vm", "clone", "a", "--template", "t", "--count", "0"}, "--count"},
      {{"template", "create", "t", "--from", "a", "--engine", "warp"}, "warp"},
      {{"migrate", "web1"}, "--to"},
      {{"migrate", "--to", "h:1"}, "VM"},
      {{"migrate", "web1", "--to", "h:1", "--mode", "teleport"}, "teleport"},
      {{"migrate", "web1", "--to", "h:1", "--max-downtime", "5"}, "--max-downtime"},
      {{"migrate", "web1", "--to", "h:1", "--max-downtime", "61s"}, "--max-downtime"},
      {{"migrate", "web1", "--to", "h:1", "--connections", "65"}, "--connections"},
      {{"migrate", "resolve", "a", "--force-discard", "--force-start-here"}, "--force-"},
  };
  for (const Case& test : cases) {
    const Ran ran = run(test.arguments);
    EXPECT_EQ(ran.code, kUsage) << testing::PrintToString(test.arguments) << ran.err;
    EXPECT_NE(ran.err.find(test.named), std::string::npos) << ran.err;
    EXPECT_EQ(ran.err.rfind("fvmmctl: ", 0), 0U) << ran.err;
    EXPECT_EQ(ran.out, "");
  }
  EXPECT_NE(run({"--output", "json", "vm"}).out.find("\"INVALID_ARGUMENT\""), std::string::npos);
}

TEST_F(CliCommands, HelpIsDoneAndHidesTheTestHooks) {
  const Ran ran = run({"--help"});
  EXPECT_EQ(ran.code, kDone);
  EXPECT_NE(ran.out.find("migrate"), std::string::npos);
  EXPECT_EQ(ran.out.find("debug"), std::string::npos);
  EXPECT_EQ(run({"migrate", "--help"}).out.find("test-hook"), std::string::npos);
}

TEST(CliUnreachable, NoDaemonIsCode3AndSaysWhatToDo) {
  const Ran ran = run_with("/nonexistent/fvmmd.sock", {"vm", "list", "--output", "json"});
  EXPECT_EQ(ran.code, kUnreachable);
  EXPECT_NE(ran.err.find("is fvmmd running?"), std::string::npos);
  EXPECT_NE(ran.out.find("\"UNAVAILABLE\""), std::string::npos);
  EXPECT_EQ(run_with("/nonexistent/fvmmd.sock", {"migrate", "a", "--to", "h:1"}).code, kUnreachable);
}

/// Accepts one connection, reads a little and drops it.
Ran run_against_a_dying_daemon(const std::vector<std::string>& arguments) {
  test::TemporaryDirectory directory;
  const auto path = directory.path() / "s";
  const UniqueFd listener = std::move(*control::listen_unix(path));
  std::thread dying([&] {
    ASSERT_TRUE(control::wait_for(listener.get(), POLLIN, test::soon()));
    const UniqueFd client(::accept(listener.get(), nullptr, nullptr));
    char byte = 0;
    EXPECT_EQ(::recv(client.get(), &byte, 1, 0), 1);
  });
  const Ran ran = run_with(path.string(), arguments);
  dying.join();
  return ran;
}

TEST(CliUnreachable, DaemonLostDuringAMigrationIsAnUnknownOutcome) {
  EXPECT_EQ(run_against_a_dying_daemon({"migrate", "a", "--to", "h:1"}).code, kUnknown);
  EXPECT_EQ(run_against_a_dying_daemon({"vm", "list"}).code, kUnreachable);
}

}  // namespace
}  // namespace fvmm::cli
