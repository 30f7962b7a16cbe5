// A migration that fails before COMMIT leaves the guest where it was and nothing where it was going, and can be tried
// again at once: one step after the other, on either side; then cancelling, deadlines, and a guest that is too fast.
#include "support/daemons.h"

namespace fvmm::test {
namespace {

class DaemonFailures : public TwoHosts {
 protected:
  static Ctl migrate(Host& from, Host& to, const std::string& mode, const std::string& hook = "") {
    std::vector<std::string> words{"migrate", "web", "--to", to.listen(), "--mode", mode, "--max-downtime", "200ms"};
    if (!hook.empty()) words.insert(words.end(), {"--test-hook", hook});
    return from.ctl(words);
  }
  /// The host carries nothing of the VM but what it had before: no replica, no worker.
  static bool has_only(Host& host, const std::string& state) {
    return wait_until([&] { return host.state("web") == state && host.workers().empty(); });
  }
  /// `hook` breaks a migration; the guest goes on at `from`, unharmed, and the next migration works.
  static void expect_survived(Host& from, Host& to, const std::string& mode, const std::string& hook) {
    SCOPED_TRACE(hook + " in " + mode + ", from " + from.name());
    const std::string before = to.state("web");  // "", or "moved" when it comes back

    const Ctl failed = migrate(from, to, mode, hook);

    EXPECT_EQ(failed.code, 1) << failed;
    EXPECT_EQ(failed.text("result"), "aborted") << failed;
    EXPECT_NE(failed.text("error").find("test hook at step"), std::string::npos) << failed;
    EXPECT_EQ(from.state("web"), "running");
    EXPECT_TRUE(from.verified_after_now("web"));
    EXPECT_TRUE(has_only(to, before)) << to.name() << " keeps " << to.state("web") << " and " << to.workers().size()
                                      << " workers";

    const Ctl again = migrate(from, to, mode);
    ASSERT_EQ(again.code, 0) << again;
    EXPECT_TRUE(to.verified_after_now("web"));
  }
  /// Each hook in turn, the VM going back and forth; every other time the destination has known it before.
  void expect_each_survived(const std::string& mode, const std::vector<std::string>& hooks) {
    ASSERT_TRUE(boot_workload(*a_, "web"));
    for (std::size_t i = 0; i < hooks.size() && !HasFatalFailure(); ++i) {
      Host& from = i % 2 == 0 ? *a_ : *b_;
      Host& to = i % 2 == 0 ? *b_ : *a_;
      expect_survived(from, to, mode, hooks[i]);
      if (i % 4 < 2) {
        EXPECT_EQ(from.ctl({"vm", "rm", "web"}).code, 0);
      }
    }
  }
};

TEST_F(DaemonFailures, SuspendThatFailsAtAnyStepOfTheSourceChangesNothing) {
  expect_each_survived("suspend", {"fail:connect", "fail:hello", "fail:leaving", "fail:ready", "fail:data",
                                   "fail:converged", "fail:pause", "fail:save", "fail:harvest", "fail:pages",
                                   "fail:state", "fail:prepared", "fail:commit", "fail:committing"});
}

TEST_F(DaemonFailures, PrecopyThatFailsAtItsOwnStepsChangesNothing) {
  expect_each_survived("precopy", {"fail:round", "fail:converged", "fail:pages", "fail:prepared"});
}

TEST_F(DaemonFailures, FailureAtAnyStepOfTheDestinationChangesNothing) {
  expect_each_survived(
      "suspend", {"peer-fail:prepare", "peer-fail:may-start", "peer-fail:ready", "peer-fail:receive", "peer-fail:state",
                  "peer-fail:load", "peer-fail:prepared", "peer-fail:commit", "peer-fail:run"});
}

// STARTED is lost, but the peer answers when asked.
TEST_F(DaemonFailures, SourceThatMissesStartedAsksAndCompletes) {
  ASSERT_TRUE(boot_workload(*a_, "web"));
  const Ctl moved = migrate(*a_, *b_, "suspend", "fail:started");
  EXPECT_EQ(moved.code, 0) << moved;
  EXPECT_EQ(moved.text("result"), "completed") << moved;
  EXPECT_EQ(a_->state("web"), "moved");
  EXPECT_TRUE(b_->verified_after_now("web"));
}

TEST_F(DaemonFailures, GuestTooFastForPrecopyStaysUntouchedAndTheErrorHasNumbers) {
  ASSERT_TRUE(boot_workload(*a_, "web", "128M", "seed=7 ws=64 rate=1000000"));
  const Ctl failed = a_->ctl(
      {"migrate", "web", "--to", b_->listen(), "--mode", "precopy", "--max-downtime", "1us", "--timeout", "20s",
       "--test-hook", "delay:round"});  // a round shorter than the guest's step to its next page would find none
  EXPECT_EQ(failed.code, 1) << failed;
  EXPECT_EQ(failed.text("result"), "aborted") << failed;
  EXPECT_NE(failed.text("error").find("pages left after round"), std::string::npos) << failed;
  EXPECT_NE(failed.text("error").find("MB/s"), std::string::npos) << failed;
  EXPECT_GT(failed.number("rounds"), 1) << failed;
  EXPECT_EQ(failed.number("downtime_ms"), 0) << "it was never paused\n" << failed;
  EXPECT_TRUE(a_->verified_after_now("web"));
  EXPECT_TRUE(has_only(*b_, ""));
}

TEST_F(DaemonFailures, GuestTooFastForLiveStaysUntouchedAndIsToldOfThrottling) {
  ASSERT_TRUE(boot_workload(*a_, "web", "128M", "seed=7 ws=64 rate=1000000"));
  const Ctl failed = a_->ctl({"migrate", "web", "--to", b_->listen(), "--mode", "live", "--max-downtime", "1us",
                              "--bandwidth", "400Mbit", "--timeout", "20s"});
  EXPECT_EQ(failed.code, 1) << failed;
  EXPECT_EQ(failed.text("result"), "aborted") << failed;
  EXPECT_NE(failed.text("error").find("--allow-throttle"), std::string::npos) << failed;
  EXPECT_EQ(failed.number("throttle_percent"), 0) << failed;
  EXPECT_EQ(failed.number("downtime_ms"), 0) << "it was never paused\n" << failed;
  EXPECT_TRUE(a_->verified_after_now("web"));
  EXPECT_TRUE(has_only(*b_, ""));
}

TEST_F(DaemonFailures, CancelEndsAPrecopyAndTheGuestGoesOn) {
  ASSERT_TRUE(boot_workload(*a_, "web", "128M", "seed=7 ws=64 rate=1000000"));
  RunningCtl migration = a_->begin({"migrate", "web", "--to", b_->listen(), "--mode", "precopy", "--max-downtime",
                                    "1us", "--test-hook", "delay:round"});
  ASSERT_TRUE(wait_until([&] { return a_->state("web") == "migrating"; }));
  const Ctl cancelled = a_->ctl({"migrate", "cancel", "web"});
  EXPECT_EQ(cancelled.code, 0) << cancelled;
  const Ctl result = migration.finish();
  EXPECT_EQ(result.code, 1) << result;
  EXPECT_EQ(result.text("result"), "aborted") << result;
  EXPECT_NE(result.text("error").find("cancelled"), std::string::npos) << result;
  EXPECT_EQ(a_->state("web"), "running");
  EXPECT_TRUE(a_->verified_after_now("web"));
  EXPECT_TRUE(has_only(*b_, ""));
  EXPECT_EQ(a_->ctl({"migrate", "cancel", "web"}).code, 1) << "nothing is left to cancel";
}

TEST_F(DaemonFailures, TimeoutAbortsAtTheSource) {
  ASSERT_TRUE(boot_workload(*a_, "web"));
  const Ctl late = a_->ctl(
      {"migrate", "web", "--to", b_->listen(), "--mode", "precopy", "--timeout", "1s", "--test-hook", "delay:round"});
  EXPECT_EQ(late.code, 1) << late;
  EXPECT_EQ(late.text("result"), "aborted") << late;
  EXPECT_NE(late.text("error").find("--timeout"), std::string::npos) << late;
  EXPECT_TRUE(a_->verified_after_now("web"));
  EXPECT_TRUE(has_only(*b_, ""));
}

// The guest is paused when the peer falls silent: it must not wait longer than it was told to.
TEST_F(DaemonFailures, PeerThatStallsInThePauseGivesTheGuestBackAtTheDeadline) {
  ASSERT_TRUE(boot_workload(*a_, "web"));
  const Ctl late = a_->ctl({"migrate", "web", "--to", b_->listen(), "--mode", "suspend", "--timeout", "6s",
                            "--test-hook", "peer-stall:load"});
  EXPECT_EQ(late.code, 1) << late;
  EXPECT_EQ(late.text("result"), "aborted") << late;
  EXPECT_EQ(a_->state("web"), "running");
  EXPECT_TRUE(a_->verified_after_now("web"));
  EXPECT_EQ(b_->state("web"), "incoming") << "it cannot start: the session is over";
}

}  // namespace
}  // namespace fvmm::test
