// fvmmd ends and comes back, by SIGTERM and by SIGKILL: guests run on, nothing is lost, leaked or half-made.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <thread>

#include "support/daemons.h"

namespace fvmm::test {
namespace {

const std::vector<std::string> kWithWarmWorkers{"--test-hooks", "--warm-workers", "1"};

pid_t pid_of(const boost::json::object& vm) {
  return vm.empty() ? 0 : static_cast<pid_t>(vm.at("worker_pid").as_int64());
}

void type(Host& host, const std::string& vm, std::string_view keys) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd keyboard(ends[0]);
  UniqueFd typing(ends[1]);
  const auto out = host.directory() / "typed.out";
  Process console({std::string(FVMM_BIN_DIR) + "/fvmmctl", "--socket", host.socket(), "vm", "console", vm}, out, out,
                  keyboard.get());
  ASSERT_EQ(::write(typing.get(), keys.data(), keys.size()), static_cast<ssize_t>(keys.size()));
  const std::string answer = keys == "p" ? "PAUSED step=" : "RESUMED step=";
  EXPECT_TRUE(host.serial_contains(vm, answer));
  typing.reset();
  EXPECT_EQ(console.wait(std::chrono::seconds(30)), 0) << read_text(out);
}

/// What a store holds beside sealed templates.
std::vector<std::string> half_made(const Host& host) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(host.state_directory() / "templates")) {
    if (entry.path().filename().string().starts_with('.')) found.push_back(entry.path().filename().string());
  }
  return found;
}

class RestartTest : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override { FVMM_NEEDS_KVM(); }
  Cluster& cluster() { return cluster_; }

 private:
  Cluster cluster_;
};

TEST_P(RestartTest, GuestsRunOnAndTheNextFvmmdCommandsTheSameWorkers) {
  Host& host = cluster().add("A", kWithWarmWorkers);
  ASSERT_TRUE(boot_workload(host, "web"));
  ASSERT_TRUE(boot_workload(host, "resting"));
  ASSERT_EQ(host.ctl({"vm", "pause", "resting"}).code, 0);
  ASSERT_TRUE(wait_until([&] { return host.ctl({"host", "show"}).number("warm_workers") == 1; }));
  const pid_t web = pid_of(host.vm("web"));
  const pid_t resting = pid_of(host.vm("resting"));
  ASSERT_EQ(host.workers().size(), 3U);

  host.end_daemon(GetParam());

  EXPECT_TRUE(host.verified_after_now("web")) << "without any fvmmd";
  host.start();
  EXPECT_EQ(host.state("web"), "running");
  EXPECT_EQ(host.state("resting"), "paused");
  EXPECT_EQ(pid_of(host.vm("web")), web);
  EXPECT_EQ(pid_of(host.vm("resting")), resting);
  // The old warm worker is gone, however its fvmmd ended.
  EXPECT_TRUE(wait_until([&] { return host.workers().size() == 2; })) << host.workers().size() << " workers";
  EXPECT_EQ(host.ctl({"vm", "resume", "resting"}).code, 0);
  EXPECT_TRUE(host.verified_after_now("resting"));
  EXPECT_EQ(host.ctl({"vm", "show", "web"}).text("state"), "running");
  EXPECT_EQ(host.ctl({"vm", "pause", "web"}).code, 0);
  EXPECT_EQ(host.ctl({"vm", "resume", "web"}).code, 0);
  type(host, "web", "p");
  type(host, "web", "r");
  EXPECT_TRUE(host.verified_after_now("web"));
  ASSERT_EQ(host.ctl({"template", "create", "base", "--from", "web"}).code, 0);
  EXPECT_TRUE(host.verified_after_now("web"));
  EXPECT_EQ(host.ctl({"vm", "stop", "web"}).code, 0);
  EXPECT_EQ(host.ctl({"vm", "stop", "resting"}).code, 0);
}

TEST_P(RestartTest, EveryStateAndItsReasonIsStillKnown) {
  Host& host = cluster().add("A");
  ASSERT_EQ(host.ctl({"vm", "create", "new", "--memory", "16M", "--kernel", guest("workload.elf")}).code, 0);
  ASSERT_TRUE(boot_workload(host, "ended"));
  ASSERT_EQ(host.ctl({"vm", "stop", "ended"}).code, 0);
  ASSERT_TRUE(boot_workload(host, "killed"));
  ::kill(pid_of(host.vm("killed")), SIGKILL);
  ASSERT_TRUE(wait_until([&] { return host.state("killed") == "lost"; }));
  const std::string reason = Host::text(host.vm("killed"), "detail");
  EXPECT_NE(reason, "");

  host.end_daemon(GetParam());
  host.start();

  EXPECT_EQ(host.state("new"), "created");
  EXPECT_EQ(host.state("ended"), "stopped");
  EXPECT_EQ(host.state("killed"), "lost");
  EXPECT_EQ(Host::text(host.vm("killed"), "detail"), reason);
  EXPECT_EQ(host.ctl({"vm", "start", "ended"}).code, 0);
  EXPECT_TRUE(host.verified_after_now("ended"));
  EXPECT_EQ(host.ctl({"vm", "rm", "killed"}).code, 0);
}

TEST_P(RestartTest, WhatHappensToGuestsMeanwhileIsFoundOut) {
  Host& host = cluster().add("A");
  ASSERT_TRUE(boot_workload(host, "dies"));
  ASSERT_TRUE(boot_workload(host, "quits"));
  ASSERT_TRUE(boot_workload(host, "stays"));
  const auto dies = pid_of(host.vm("dies"));
  const auto console = Host::text(host.ctl({"vm", "show", "quits"}).json, "console_path");

  host.end_daemon(GetParam());
  ::kill(dies, SIGKILL);
  {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    console.copy(address.sun_path, sizeof(address.sun_path) - 1);
    const UniqueFd keys(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::connect(keys.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    ASSERT_EQ(::send(keys.get(), "q", 1, 0), 1);
    ASSERT_TRUE(host.serial_contains("quits", "QUIT step="));
  }
  host.start();

  EXPECT_TRUE(wait_until([&] { return host.state("dies") == "lost"; }));
  EXPECT_TRUE(wait_until([&] { return host.state("quits") == "stopped"; }));
  EXPECT_EQ(host.state("stays"), "running");
  EXPECT_TRUE(wait_until([&] { return host.workers().size() == 1; }));
  EXPECT_TRUE(host.verified_after_now("stays"));
}

INSTANTIATE_TEST_SUITE_P(Signals, RestartTest, ::testing::Values(SIGTERM, SIGKILL), [](const auto& tested) {
  return tested.param == SIGTERM ? std::string("Sigterm") : std::string("Sigkill");
});

/// A moment of `template create`, by what the store shows: a file of the staging directory, or the sealed template.
class TemplateRestartTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { FVMM_NEEDS_KVM(); }
  Cluster& cluster() { return cluster_; }
  static bool reached(const Host& host, const std::string& moment) {
    std::error_code error;
    const auto store = host.state_directory() / "templates";
    for (std::filesystem::directory_iterator it(store, error), end; !error && it != end; it.increment(error)) {
      const bool staging = it->path().filename().string().starts_with('.');
      if (!staging) return true;  // past every moment
      if (moment == "staging" || std::filesystem::exists(it->path() / moment, error)) return true;
    }
    return false;
  }

 private:
  Cluster cluster_;
};

TEST_P(TemplateRestartTest, AKilledFvmmdLeavesAWholeTemplateOrNone) {
  Host& host = cluster().add("A");
  ASSERT_TRUE(boot_workload(host, "web", "256M"));
  const pid_t worker = pid_of(host.vm("web"));
  RunningCtl creating = host.begin({"template", "create", "base", "--from", "web"});
  const Deadline deadline = Deadline::after(kGuestWait);
  while (!reached(host, GetParam()) && !deadline.passed()) std::this_thread::yield();

  host.kill_daemon();

  const Ctl created = creating.finish();
  EXPECT_TRUE(created.code == 3 || created.code == 0) << "lost with its daemon, or done just before: " << created;
  host.start();
  EXPECT_EQ(pid_of(host.vm("web")), worker);
  // The worker goes on by itself: it seals, or it has.
  EXPECT_TRUE(wait_until([&] { return half_made(host).empty(); })) << "a staging directory stays";
  EXPECT_TRUE(host.verified_after_now("web"));
  const Ctl again = host.ctl({"template", "create", "base", "--from", "web"});
  EXPECT_TRUE(again.code == 0 || again.err.find("exists") != std::string::npos) << again;
  EXPECT_EQ(host.ctl({"template", "verify", "base"}).code, 0);
  ASSERT_EQ(host.ctl({"vm", "clone", "copy", "--template", "base", "--start"}).code, 0);
  EXPECT_TRUE(host.verified_after_now("copy"));
}

TEST_P(TemplateRestartTest, AKilledWorkerLeavesNothingThatARestartDoesNotClear) {
  Host& host = cluster().add("A");
  ASSERT_TRUE(boot_workload(host, "web", "256M"));
  const pid_t worker = pid_of(host.vm("web"));
  RunningCtl creating = host.begin({"template", "create", "base", "--from", "web"});
  const Deadline deadline = Deadline::after(kGuestWait);
  while (!reached(host, GetParam()) && !deadline.passed()) std::this_thread::yield();

  ::kill(worker, SIGKILL);

  const Ctl created = creating.finish();
  ASSERT_TRUE(wait_until([&] { return host.state("web") == "lost"; }));
  const bool sealed = host.ctl({"template", "verify", "base"}).code == 0;
  EXPECT_TRUE(sealed || created.code != 0) << "what was promised is there";
  host.kill_daemon();
  host.start();
  EXPECT_TRUE(half_made(host).empty());
  EXPECT_EQ(host.ctl({"template", "verify", "base"}).code == 0, sealed);
  ASSERT_TRUE(boot_workload(host, "next"));
  EXPECT_EQ(host.ctl({"template", "create", "fresh", "--from", "next"}).code, 0);
  EXPECT_TRUE(host.verified_after_now("next"));
}

INSTANTIATE_TEST_SUITE_P(Moments, TemplateRestartTest,
                         ::testing::Values("staging", "memory", "hashes", "machine", "manifest"),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
}  // namespace fvmm::test
