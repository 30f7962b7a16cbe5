// VMs whose delta is found when it is needed, through fvmmctl: created, cloned, templated and migrated.
#include "support/daemons.h"

namespace fvmm::test {
namespace {

class DaemonTracking : public TwoHosts {
 protected:
  static std::string tracking(Host& host, const std::string& vm) {
    const auto found = host.vm(vm);
    return found.empty() ? "" : Host::text(found.at("config").as_object(), "tracking");
  }
  static bool delta_unknown(Host& host, const std::string& vm) {
    return host.ctl({"vm", "show", vm}).at("delta_unknown").as_bool();
  }
  ::testing::AssertionResult boot(const std::string& tracking) {
    const Ctl created = a_->ctl({"vm", "create", "seed", "--memory", "64M", "--kernel", guest("workload.elf"),
                                 "--cmdline", "seed=7 ws=4 rate=2000 beat=50", "--tracking", tracking, "--start"});
    if (created.code != 0) return ::testing::AssertionFailure() << created;
    if (!a_->serial_contains("seed", "FILLED")) return ::testing::AssertionFailure() << "it does not fill its memory";
    return ::testing::AssertionSuccess();
  }
};

TEST_F(DaemonTracking, ScanGoesWithTheVmOverTemplateCloneAndMigration) {
  ASSERT_TRUE(boot("scan"));
  EXPECT_EQ(tracking(*a_, "seed"), "scan");
  EXPECT_TRUE(delta_unknown(*a_, "seed")) << "to look is no reason to find it";

  const Ctl made = a_->ctl({"template", "create", "base", "--from", "seed"});
  ASSERT_EQ(made.code, 0) << made;
  EXPECT_GT(made.number("scan_ms"), 0);
  EXPECT_FALSE(delta_unknown(*a_, "seed")) << "the log stays on: this delta is against the new template";
  const Ctl again = a_->ctl({"template", "create", "later", "--from", "seed", "--engine", "stop"});
  ASSERT_EQ(again.code, 0) << again;
  EXPECT_EQ(again.number("scan_ms"), 0) << "known by now";
  ASSERT_TRUE(a_->verified_after_now("seed"));
  ASSERT_EQ(a_->ctl({"vm", "stop", "seed"}).code, 0);
  ASSERT_EQ(a_->ctl({"template", "push", "base", "--to", b_->listen()}).code, 0);

  ASSERT_EQ(a_->ctl({"vm", "clone", "web", "--template", "base", "--start"}).code, 0);
  EXPECT_EQ(tracking(*a_, "web"), "scan") << "as its template";
  Host* from = a_;
  Host* to = b_;
  for (const auto* mode : {"suspend", "live", "auto"}) {
    SCOPED_TRACE(mode);
    ASSERT_TRUE(from->next_heartbeat("web"));
    EXPECT_TRUE(delta_unknown(*from, "web")) << "nothing is logged where it arrived";
    const Ctl moved = from->ctl({"migrate", "web", "--to", to->listen(), "--mode", mode, "--max-downtime", "50ms"});
    ASSERT_EQ(moved.code, 0) << moved;
    EXPECT_TRUE(moved.at("phases").as_object().contains("scan")) << moved;
    EXPECT_EQ(moved.text("way_back"), "") << "nobody counts at the other side";
    EXPECT_EQ(tracking(*to, "web"), "scan");
    EXPECT_TRUE(to->verified_after_now("web"));
    std::swap(from, to);
  }
}

TEST_F(DaemonTracking, AStopTemplateOfAScanningCloneIsWhole) {
  ASSERT_TRUE(boot("log"));
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "seed"}).code, 0);
  ASSERT_EQ(a_->ctl({"vm", "stop", "seed"}).code, 0);
  ASSERT_EQ(a_->ctl({"vm", "clone", "web", "--template", "base", "--tracking", "scan", "--start"}).code, 0);
  EXPECT_EQ(tracking(*a_, "seed"), "log");
  EXPECT_EQ(tracking(*a_, "web"), "scan") << "its own choice";
  ASSERT_TRUE(a_->next_heartbeat("web"));
  for (const auto* engine : {"stop", "chase"}) {
    const Ctl made = a_->ctl({"template", "create", engine, "--from", "web", "--engine", engine});
    ASSERT_EQ(made.code, 0) << made;
    ASSERT_EQ(a_->ctl({"vm", "clone", std::string("of-") + engine, "--template", engine, "--start"}).code, 0);
    EXPECT_TRUE(a_->verified_after_now(std::string("of-") + engine)) << engine;
  }
  EXPECT_TRUE(a_->verified_after_now("web"));
}

TEST_F(DaemonTracking, AReplicatedScanningVmIsRecoveredWhole) {
  ASSERT_TRUE(boot("log"));
  ASSERT_TRUE(share_template(*a_, *b_, "seed", "base"));
  ASSERT_EQ(a_->ctl({"vm", "stop", "seed"}).code, 0);
  ASSERT_EQ(a_->ctl({"vm", "clone", "web", "--template", "base", "--tracking", "scan", "--start"}).code, 0);
  ASSERT_TRUE(a_->next_heartbeat("web"));
  ASSERT_EQ(a_->ctl({"replicate", "start", "web", "--to", b_->listen(), "--interval", "100ms"}).code, 0);
  ASSERT_TRUE(wait_until([&] { return a_->ctl({"replicate", "status", "web"}).number("generation_sealed") >= 3; }));
  a_->kill_daemon();
  for (const pid_t worker : a_->workers()) ::kill(worker, SIGKILL);
  const Ctl recovered = b_->ctl({"replicate", "recover", "web", "--source-is-dead"});
  ASSERT_EQ(recovered.code, 0) << recovered;
  EXPECT_EQ(tracking(*b_, "web"), "scan");
  EXPECT_TRUE(b_->verified_after_now("web"));
  a_->start();
}

TEST_F(DaemonTracking, WithoutAWordItLogsAndSaysSo) {
  ASSERT_EQ(a_->ctl({"vm", "create", "web", "--memory", "64M", "--kernel", guest("workload.elf")}).code, 0);
  EXPECT_EQ(tracking(*a_, "web"), "log");
}

TEST_F(DaemonTracking, AnUnknownKindIsAUsageError) {
  const Ctl refused =
      a_->ctl({"vm", "create", "web", "--memory", "64M", "--kernel", guest("workload.elf"), "--tracking", "guess"});
  EXPECT_EQ(refused.code, 2) << refused;
}

}  // namespace
}  // namespace fvmm::test
