// A worker that is set up: no capabilities, only its own descriptors, and a list of system calls; one that makes
// another call ends alone.
#include <linux/capability.h>

#include <set>
#include <sstream>

#include "support/daemons.h"

namespace fvmm::test {
namespace {

namespace fs = std::filesystem;

class DaemonConfined : public ::testing::Test {
 protected:
  void SetUp() override { FVMM_NEEDS_KVM(); }
  /// A sanitizer's run time makes calls that are on no list of ours.
  static bool sanitized() {
#ifdef FVMM_SANITIZED
    return true;
#else
    return false;
#endif
  }
  Host& host(const std::string& seccomp) {
    return cluster_.add("A", {"--test-hooks", "--warm-workers", "0", "--seccomp", seccomp});
  }
  static pid_t worker_of(Host& host, const std::string& vm) {
    return static_cast<pid_t>(host.ctl({"vm", "show", vm}).number("worker_pid"));
  }
  /// "Name:\tvalue" of a task's status file, proc(5).
  static std::string field(const fs::path& task, const std::string& name) {
    std::istringstream lines(read_text(task / "status"));
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with(name + ":\t")) return line.substr(name.size() + 2);
    }
    return "absent";
  }

  Cluster cluster_;
};

TEST_F(DaemonConfined, AForbiddenCallEndsItsWorkerAloneAndTheVmSaysWhy) {
  if (sanitized()) GTEST_SKIP() << "a sanitizer's run time makes calls that are on no list of ours";
  Host& a = host("on");
  ASSERT_TRUE(boot_workload(a, "web"));
  ASSERT_TRUE(boot_workload(a, "db"));
  const pid_t daemon = a.daemon_pid();
  EXPECT_EQ(a.ctl({"vm", "show", "web"}).text("seccomp"), "on");

  const Ctl poked = a.ctl({"debug", "poke", "web", "--forbidden-call"});

  EXPECT_NE(poked.code, 0) << "nobody is left to answer\n" << poked;
  EXPECT_TRUE(wait_until([&] { return a.state("web") == "lost" || a.state("web") == "failed"; })) << a.state("web");
  EXPECT_NE(Host::text(a.vm("web"), "detail").find("seccomp"), std::string::npos) << Host::text(a.vm("web"), "detail");
  EXPECT_EQ(a.state("db"), "running");
  EXPECT_TRUE(a.verified_after_now("db"));
  EXPECT_EQ(a.daemon_pid(), daemon);
  EXPECT_EQ(a.workers().size(), 1U);
}

TEST_F(DaemonConfined, EachThreadOfAWorkerIsFilteredAndHasGivenUpItsCapabilities) {
  Host& a = host(sanitized() ? "log" : "on");
  ASSERT_TRUE(boot_workload(a, "web"));
  const fs::path process = "/proc/" + std::to_string(worker_of(a, "web"));
  const std::uint64_t may_keep = 1ULL << CAP_SYS_NICE | 1ULL << CAP_IPC_LOCK;  // where their limits cannot be raised
  std::size_t tasks = 0;
  for (const auto& task : fs::directory_iterator(process / "task")) {
    ++tasks;
    SCOPED_TRACE(field(task, "Name"));
    EXPECT_EQ(std::stoull(field(task, "CapInh"), nullptr, 16), 0U);
    EXPECT_EQ(std::stoull(field(task, "CapAmb"), nullptr, 16), 0U);
    for (const char* const set : {"CapPrm", "CapEff"}) {
      EXPECT_EQ(std::stoull(field(task, set), nullptr, 16) & ~may_keep, 0U) << set;
    }
    EXPECT_EQ(field(task, "NoNewPrivs"), "1");
    EXPECT_EQ(field(task, "Seccomp"), "2") << "a filter";
  }
  EXPECT_GT(tasks, 2U) << "vCPU and serial writer have threads of their own";
}

TEST_F(DaemonConfined, AWorkerHoldsNoDescriptorOfItsDaemon) {
  Host& a = host("log");
  ASSERT_TRUE(boot_workload(a, "web"));
  const auto open_files = [](pid_t pid) {
    std::set<std::string> out;
    for (const auto& fd : fs::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
      std::error_code ignored;
      out.insert(fs::read_symlink(fd, ignored).string());
    }
    return out;
  };
  const auto of_daemon = open_files(a.daemon_pid());
  EXPECT_TRUE(of_daemon.contains((a.state_directory() / "lock").string())) << "the daemon holds its lock";
  for (const std::string& file : open_files(worker_of(a, "web"))) {
    const bool shared =
        file.starts_with("socket:") || file.starts_with("pipe:") || file.starts_with(a.directory().string());
    EXPECT_FALSE(shared && of_daemon.contains(file)) << file;
  }
}

TEST_F(DaemonConfined, WithoutTheFilterTheCallPassesAndTheVmShowsIt) {
  for (const char* const mode : {"log", "off"}) {
    SCOPED_TRACE(mode);
    Host& a = cluster_.add(mode, {"--test-hooks", "--warm-workers", "0", "--seccomp", mode});
    ASSERT_TRUE(boot_workload(a, "web"));
    const Ctl poked = a.ctl({"debug", "poke", "web", "--forbidden-call"});
    EXPECT_EQ(poked.code, 1) << poked;
    EXPECT_NE(poked.err.find("let through"), std::string::npos) << poked;
    EXPECT_EQ(a.ctl({"vm", "show", "web"}).text("seccomp"), mode);
    EXPECT_TRUE(a.verified_after_now("web"));
  }
}

}  // namespace
}  // namespace fvmm::test
