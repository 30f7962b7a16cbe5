// What a person does with the VMs of one host, through fvmmctl: every state, clones, console, logs, and guests that end
// by themselves.
#include <gtest/gtest.h>

#include <set>

#include "support/console.h"
#include "support/daemons.h"
#include "support/tiny_kernel.h"

namespace fvmm::test {
namespace {

using namespace std::string_view_literals;

class VmTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    host_ = &cluster_.add("A");
  }
  Host& host() { return *host_; }
  std::string state(const std::string& vm) { return host().state(vm); }
  bool becomes(const std::string& vm, const std::string& wanted) {
    return wait_until([&] { return state(vm) == wanted; });
  }
  Ctl boot_code(const std::string& vm, std::string_view code) {
    const std::string kernel = write_text(host().directory() / (vm + ".elf"), tiny_kernel(code));
    return host().ctl({"vm", "create", vm, "--memory", "16M", "--kernel", kernel, "--start"});
  }
  static std::string id_of(const boost::json::object& vm) { return std::string(vm.at("config").at("id").as_string()); }
  static pid_t pid_of(const boost::json::object& vm) { return static_cast<pid_t>(vm.at("worker_pid").as_int64()); }

 private:
  Cluster cluster_;
  Host* host_ = nullptr;
};

TEST_F(VmTest, EachCommandMovesTheVmToItsStateAndListAndShowAgree) {
  ASSERT_EQ(host()
                .ctl({"vm", "create", "web", "--memory", "64M", "--kernel", guest("workload.elf"), "--cmdline",
                      "seed=3 ws=4 rate=2000 beat=50"})
                .code,
            0);
  EXPECT_EQ(state("web"), "created");
  EXPECT_TRUE(host().workers().empty()) << "a VM that was never started needs no worker";

  const Ctl started = host().ctl({"vm", "start", "web"});
  ASSERT_EQ(started.code, 0) << started;
  EXPECT_EQ(started.text("state"), "running");
  EXPECT_TRUE(host().verified_after_now("web"));
  const Ctl shown = host().ctl({"vm", "show", "web"});
  EXPECT_EQ(shown.text("state"), "running");
  EXPECT_EQ(id_of(shown.json), id_of(host().vm("web")));
  EXPECT_EQ(host().workers(), std::vector<pid_t>{pid_of(shown.json)});
  EXPECT_GT(shown.number("serial_bytes"), 0);

  ASSERT_EQ(host().ctl({"vm", "pause", "web"}).code, 0);
  EXPECT_EQ(state("web"), "paused");
  const Ctl still = host().ctl({"vm", "show", "web"});
  EXPECT_EQ(still.number("serial_bytes"), host().ctl({"vm", "show", "web"}).number("serial_bytes"));
  EXPECT_EQ(host().ctl({"vm", "start", "web"}).code, 1) << "a paused VM is resumed, not started";
  EXPECT_EQ(host().ctl({"vm", "resume", "web"}).code, 0);
  EXPECT_EQ(state("web"), "running");
  EXPECT_TRUE(host().verified_after_now("web"));

  const Ctl kept = host().ctl({"vm", "rm", "web"});
  EXPECT_EQ(kept.code, 1);
  EXPECT_NE(kept.err.find("vm stop web"), std::string::npos) << kept;
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);
  EXPECT_EQ(state("web"), "stopped");
  EXPECT_TRUE(host().workers().empty());
}

TEST_F(VmTest, AStoppedVmStartsFromItsBeginningAndARemovedOneLeavesNothing) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);
  const std::size_t before = host().serial("web").size();
  ASSERT_EQ(host().ctl({"vm", "start", "web"}).code, 0);
  ASSERT_TRUE(wait_until([&] { return host().serial("web").find("FILLED", before) != std::string::npos; }));
  EXPECT_TRUE(host().verified_after_now("web"));
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);
  const auto directory = host().state_directory() / "vms" / id_of(host().vm("web"));
  EXPECT_TRUE(std::filesystem::exists(directory));

  ASSERT_EQ(host().ctl({"vm", "rm", "web"}).code, 0);

  EXPECT_EQ(state("web"), "");
  EXPECT_FALSE(std::filesystem::exists(directory));
  EXPECT_EQ(host().ctl({"vm", "show", "web"}).code, 1);
  const Ctl again =
      host().ctl({"vm", "create", "web", "--memory", "64M", "--kernel", guest("workload.elf"), "--start"});
  EXPECT_EQ(again.code, 0) << "the name is free again: " << again;
}

TEST_F(VmTest, ClonesVerifyAndAreVmsOfTheirOwn) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "web"}).code, 0);

  const Ctl cloned = host().ctl({"vm", "clone", "copy", "--template", "base", "--count", "3", "--start"});

  ASSERT_EQ(cloned.code, 0) << cloned;
  std::set<std::string> ids{id_of(host().vm("web"))};
  std::set<pid_t> pids{pid_of(host().vm("web"))};
  for (const auto* name : {"copy-1", "copy-2", "copy-3"}) {
    const auto vm = host().vm(name);
    ASSERT_FALSE(vm.empty()) << name;
    EXPECT_EQ(Host::text(vm, "state"), "running");
    EXPECT_EQ(vm.at("template").at("name").as_string(), "base");
    EXPECT_TRUE(ids.insert(id_of(vm)).second) << name << " has the id of another VM";
    EXPECT_TRUE(pids.insert(pid_of(vm)).second) << name << " shares a worker";
    EXPECT_TRUE(host().verified_after_now(name));
  }
  EXPECT_TRUE(host().verified_after_now("web"));
  EXPECT_EQ(host().workers().size(), 4U);
}

TEST_F(VmTest, FollowedLogsEndWithTheVmAndHoldAllThatItPrinted) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  RunningCtl follower = host().begin({"vm", "logs", "web", "--follow"});
  ASSERT_TRUE(host().verified_after_now("web"));
  EXPECT_FALSE(follower.ended());

  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);

  const Ctl followed = follower.finish();
  EXPECT_EQ(followed.code, 0) << followed.err;
  EXPECT_EQ(followed.out, host().serial("web"));
  EXPECT_EQ(host().ctl({"vm", "logs", "web"}).out, host().serial("web"));
}

TEST_F(VmTest, TheConsoleCarriesKeysToTheGuestAndItsWordsBack) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  Console console(host(), "web");
  ASSERT_TRUE(console.shows("HB n="));

  console.type("p");

  EXPECT_TRUE(console.shows("PAUSED step="));
  EXPECT_TRUE(host().serial_contains("web", "PAUSED step="));
  console.type("r");
  EXPECT_TRUE(console.shows("RESUMED step="));
  EXPECT_EQ(console.leave(), 0);
  EXPECT_TRUE(host().verified_after_now("web"));
}

TEST_F(VmTest, InstructionsCompletedForKvmAreCounted) {
  ASSERT_EQ(
      host().ctl({"vm", "create", "insn", "--memory", "64M", "--kernel", guest("instructions.elf"), "--start"}).code,
      0);
  ASSERT_TRUE(host().serial_contains("insn", "INSN done"));
  const Ctl shown = host().ctl({"vm", "show", "insn"});
  ASSERT_EQ(shown.code, 0) << shown;
  if (std::filesystem::exists("/sys/module/kvm_pvm")) {
    EXPECT_GE(shown.number("completed_instructions"), 15) << shown;
  } else {
    EXPECT_LE(shown.number("completed_instructions"), 0) << "hardware runs them all\n" << shown;
  }
}

TEST_F(VmTest, AConsoleOfAStoppedVmSaysHowToStartIt) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_EQ(host().ctl({"vm", "stop", "web"}).code, 0);
  const Ctl console = host().ctl({"vm", "console", "web"});
  EXPECT_EQ(console.code, 1);
  EXPECT_NE(console.err.find("vm start web"), std::string::npos) << console;
}

TEST_F(VmTest, AGuestThatPowersOffIsStoppedAndCanStartAgain) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_TRUE(boot_workload(host(), "other"));
  Console console(host(), "web");
  console.type("q");

  EXPECT_TRUE(becomes("web", "stopped"));

  EXPECT_TRUE(host().serial_contains("web", "QUIT step="));
  EXPECT_TRUE(console.leave());
  EXPECT_TRUE(wait_until([&] { return host().workers().size() == 1; })) << "its worker has ended";
  EXPECT_TRUE(host().verified_after_now("other"));
  EXPECT_EQ(host().ctl({"vm", "start", "web"}).code, 0);
  EXPECT_TRUE(host().next_heartbeat("web"));
}

TEST_F(VmTest, ATripleFaultStopsThatVmAlone) {
  ASSERT_TRUE(boot_workload(host(), "other"));

  ASSERT_EQ(boot_code("crash", "\x0f\x0b"sv).code, 0);  // ud2, without an interrupt table

  EXPECT_TRUE(becomes("crash", "stopped"));
  EXPECT_NE(host().ctl({"vm", "show", "crash"}).text("detail").find("triple-faulted"), std::string::npos);
  EXPECT_TRUE(host().verified_after_now("other"));
  EXPECT_EQ(host().ctl({"vm", "rm", "crash"}).code, 0);
}

// KVM cannot emulate an SSE access to a device: mov eax, cr4; or eax, OSFXSR; mov cr4, eax; paddd xmm0, [0xd0000000].
constexpr std::string_view kNotEmulated =
    "\x0f\x20\xe0\x0d\x00\x02\x00\x00\x0f\x22\xe0\x66\x0f\xfe\x05\x00\x00\x00\xd0\xf4"sv;

TEST_F(VmTest, AnInstructionThatKvmCannotEmulateFailsThatVmWithRegistersAndCode) {
  ASSERT_TRUE(boot_workload(host(), "other"));

  (void)boot_code("odd", kNotEmulated);  // it may have failed before its start is reported

  ASSERT_TRUE(becomes("odd", "failed"));
  const std::string detail = host().ctl({"vm", "show", "odd"}).text("detail");
  EXPECT_NE(detail.find("KVM internal error"), std::string::npos) << detail;
  EXPECT_NE(detail.find("rip=000000000010000b"), std::string::npos) << detail;
  EXPECT_NE(detail.find("code=660ffe05000000d0f4"), std::string::npos) << detail;
  EXPECT_TRUE(host().verified_after_now("other"));
  EXPECT_TRUE(wait_until([&] { return host().workers().size() == 1; }));
  EXPECT_EQ(host().ctl({"vm", "rm", "odd"}).code, 0);
}

TEST_F(VmTest, AKilledWorkerIsALostVmWithTheReasonAndCanStartAgain) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_TRUE(boot_workload(host(), "other"));

  ::kill(pid_of(host().vm("web")), SIGKILL);

  ASSERT_TRUE(becomes("web", "lost"));
  const std::string detail = host().ctl({"vm", "show", "web"}).text("detail");
  EXPECT_NE(detail.find("signal 9"), std::string::npos) << detail;
  EXPECT_NE(detail.find("start it again"), std::string::npos) << detail;
  EXPECT_TRUE(host().verified_after_now("other"));
  EXPECT_EQ(host().ctl({"vm", "start", "web"}).code, 0);
  EXPECT_TRUE(host().verified_after_now("web"));
}

}  // namespace
}  // namespace fvmm::test
