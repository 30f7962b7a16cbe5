// Workers and daemons killed during a hand-over: at no step do two hosts run the VM, and what is not known is said to
// be unknown until `migrate resolve` settles it.
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "base/file.h"
#include "daemon/records.h"
#include "support/daemons.h"
#include "support/peer_talk.h"

namespace fvmm::test {
namespace {

/// A directory that takes no new file and no rename, as on a full disk, until its end. Needs root, and ext4 or alike.
class FrozenDirectory {
 public:
  explicit FrozenDirectory(const std::filesystem::path& path) : fd_(*open_file(path, O_RDONLY | O_DIRECTORY)) {
    frozen_ = set(true);
  }
  ~FrozenDirectory() { thaw(); }
  FrozenDirectory(const FrozenDirectory&) = delete;
  FrozenDirectory& operator=(const FrozenDirectory&) = delete;
  FrozenDirectory(FrozenDirectory&&) = delete;
  FrozenDirectory& operator=(FrozenDirectory&&) = delete;
  [[nodiscard]] bool frozen() const { return frozen_; }
  void thaw() {
    if (!std::exchange(frozen_, false)) return;
    EXPECT_TRUE(set(false));
  }

 private:
  [[nodiscard]] bool set(bool on) const {
    int flags = 0;
    if (::ioctl(fd_.get(), FS_IOC_GETFLAGS, &flags) != 0) return false;
    flags = on ? flags | FS_IMMUTABLE_FL : flags & ~FS_IMMUTABLE_FL;
    return ::ioctl(fd_.get(), FS_IOC_SETFLAGS, &flags) == 0;
  }

  UniqueFd fd_;
  bool frozen_ = false;
};

class DaemonResolve : public TwoHostsWithWeb {
 protected:
  std::vector<std::string> migration(const std::string& mode, const std::string& hook) {
    return {"migrate", "web", "--to", b_->listen(), "--mode", mode, "--max-downtime", "500ms", "--test-hook", hook};
  }
  Ctl migrate(const std::string& hook) { return a_->ctl(migration("suspend", hook)); }
  static Ctl resolve(Host& host, const std::string& force = "") {
    std::vector<std::string> words{"migrate", "resolve", "web"};
    if (!force.empty()) words.push_back(force);
    return host.ctl(words);
  }
  static bool becomes(Host& host, const std::string& state) {
    return wait_until([&] { return host.state("web") == state; });
  }
  /// Waits for the end of a precopy's first round: every connection stands.
  static bool copies(Host& host) {
    return wait_until([&] { return Host::text(host.vm("web"), "detail").find("round 1") != std::string::npos; });
  }
  static void expect_start_refused(Host& host) {
    const Ctl started = host.ctl({"vm", "start", "web"});
    EXPECT_EQ(started.code, 1) << started;
    EXPECT_NE(started.err.find("migrate resolve"), std::string::npos) << "names the way out\n" << started;
  }
  /// Neither side runs it, neither side may, and asking again does not change that.
  void expect_unknown(const Ctl& result) {
    EXPECT_EQ(result.code, 4) << result;
    EXPECT_EQ(result.text("result"), "unknown") << result;
    EXPECT_EQ(a_->state("web"), "unsettled");
    EXPECT_TRUE(becomes(*b_, "unsettled")) << b_->state("web");
    EXPECT_TRUE(b_->workers().empty());
    const std::string frozen = a_->serial("web");
    for (Host* host : {a_, b_}) {
      SCOPED_TRACE(host->name());
      expect_start_refused(*host);
      const Ctl asked = resolve(*host);
      EXPECT_EQ(asked.code, 4) << asked;
      EXPECT_EQ(asked.text("outcome"), "unsettled") << asked;
      EXPECT_EQ(host->state("web"), "unsettled");
    }
    EXPECT_EQ(a_->ctl({"vm", "resume", "web"}).code, 1);
    EXPECT_EQ(a_->serial("web"), frozen) << "the guest at the source is frozen";
  }
};

TEST_F(DaemonResolve, DestinationKilledBeforeCommitGivesTheGuestBack) {
  for (const std::string step : {"prepare", "may-start", "ready", "receive", "state", "load", "prepared"}) {
    SCOPED_TRACE(step);
    const Ctl failed = migrate("peer-kill:" + step);
    EXPECT_EQ(failed.code, 1) << failed;
    EXPECT_EQ(failed.text("result"), "aborted") << failed;
    EXPECT_EQ(a_->state("web"), "running");
    EXPECT_TRUE(a_->verified_after_now("web"));
    // From `may-start` on B cannot know by itself that COMMIT never came; A can.
    const bool recorded = step != "prepare" && step != "may-start";
    ASSERT_TRUE(becomes(*b_, recorded ? "unsettled" : "")) << b_->state("web");
    EXPECT_TRUE(b_->workers().empty());
    if (!recorded) continue;
    expect_start_refused(*b_);
    const Ctl resolved = resolve(*b_);
    EXPECT_EQ(resolved.code, 0) << resolved;
    EXPECT_EQ(resolved.text("outcome"), "replica dropped") << resolved;
    EXPECT_EQ(b_->state("web"), "");
  }
  const Ctl again = migrate("delay:none");
  EXPECT_EQ(again.code, 0) << again;
  EXPECT_TRUE(b_->verified_after_now("web"));
}

TEST_F(DaemonResolve, DestinationKilledAfterCommitIsUnknownAndCanBeForcedBack) {
  for (const std::string step : {"commit", "run", "started"}) {
    SCOPED_TRACE(step);
    expect_unknown(migrate("peer-kill:" + step));

    const Ctl forced = resolve(*a_, "--force-start-here");

    EXPECT_EQ(forced.code, 0) << forced;
    EXPECT_EQ(forced.text("outcome"), "runs here") << forced;
    EXPECT_EQ(a_->state("web"), "running");
    EXPECT_TRUE(a_->verified_after_now("web"));
    EXPECT_NE(a_->daemon_log().find("two runners"), std::string::npos) << "what was forced is logged";
    const Ctl other = resolve(*b_);  // A has decided: B learns it
    EXPECT_EQ(other.text("outcome"), "replica dropped") << other;
    EXPECT_EQ(b_->state("web"), "");
  }
}

TEST_F(DaemonResolve, UnknownCanBeDiscarded) {
  expect_unknown(migrate("peer-kill:run"));
  const Ctl nothing = resolve(*b_, "--force-start-here");
  EXPECT_EQ(nothing.code, 1) << "B has lost the memory\n" << nothing;
  EXPECT_EQ(b_->state("web"), "unsettled");

  const Ctl dropped = resolve(*a_, "--force-discard");

  EXPECT_EQ(dropped.code, 0) << dropped;
  EXPECT_EQ(dropped.text("outcome"), "moved") << dropped;
  EXPECT_EQ(a_->state("web"), "moved");
  EXPECT_TRUE(a_->workers().empty());
  const Ctl other = resolve(*b_);
  EXPECT_EQ(other.text("outcome"), "lost") << other;
  EXPECT_EQ(b_->state("web"), "lost");
}

TEST_F(DaemonResolve, PausedGuestForcedBackIsStillPaused) {
  ASSERT_EQ(a_->ctl({"vm", "pause", "web"}).code, 0);
  EXPECT_EQ(migrate("peer-kill:run").code, 4);
  EXPECT_EQ(resolve(*a_, "--force-start-here").code, 0);
  EXPECT_EQ(a_->state("web"), "paused");
  ASSERT_EQ(a_->ctl({"vm", "resume", "web"}).code, 0);
  EXPECT_TRUE(a_->verified_after_now("web"));
}

// Its memory went with the worker; all that matters is that nobody else runs it, and that A finds out.
TEST_F(DaemonResolve, SourceKilledBeforeCommitIsRefusedByThePeerAndLost) {
  for (const std::string step : {"connect", "hello", "leaving", "ready", "data", "pause", "pages", "state", "prepared",
                                 "commit", "committing"}) {
    SCOPED_TRACE(step);
    const Ctl failed = migrate("kill:" + step);
    EXPECT_TRUE(wait_until([&] { return b_->state("web").empty() && b_->workers().empty(); })) << b_->state("web");
    const bool recorded = step != "connect" && step != "hello" && step != "leaving";
    EXPECT_EQ(failed.code, recorded ? 4 : 1) << failed;
    ASSERT_TRUE(becomes(*a_, recorded ? "unsettled" : "lost")) << a_->state("web");
    if (recorded) {
      expect_start_refused(*a_);
      const Ctl resolved = resolve(*a_);
      EXPECT_EQ(resolved.code, 0) << resolved;
      EXPECT_EQ(resolved.text("outcome"), "lost") << resolved;
    }
    EXPECT_EQ(a_->state("web"), "lost");
    EXPECT_TRUE(a_->workers().empty());
    ASSERT_EQ(a_->ctl({"vm", "start", "web"}).code, 0) << "a lost VM can be booted again";
    ASSERT_TRUE(a_->next_heartbeat("web"));
  }
}

TEST_F(DaemonResolve, SourceKilledAfterCommitLearnsThatItMoved) {
  const Ctl result = migrate("kill:started");
  EXPECT_EQ(result.code, 4) << result;
  ASSERT_TRUE(becomes(*b_, "running")) << b_->state("web");
  EXPECT_TRUE(b_->verified_after_now("web"));
  EXPECT_EQ(a_->state("web"), "unsettled");
  expect_start_refused(*a_);

  const Ctl resolved = resolve(*a_);

  EXPECT_EQ(resolved.code, 0) << resolved;
  EXPECT_EQ(resolved.text("outcome"), "moved") << resolved;
  EXPECT_EQ(a_->state("web"), "moved");
  EXPECT_EQ(Host::text(a_->vm("web"), "moved_to"), b_->listen());
  EXPECT_EQ(resolve(*a_).code, 1) << "nothing is left to resolve";
}

// A destination whose worker has died without a record would ask this.
TEST_F(DaemonResolve, SourceWhoseDiskTakesNoLastRecordAnswersAndRecordsItLater) {
  const std::string id(a_->vm("web").at("config").at("id").as_string());
  const auto directory = a_->state_directory() / "vms" / id;
  RunningCtl migrating = a_->begin(migration("suspend", "delay:started"));
  ASSERT_TRUE(wait_until([&] { return daemon::read_session(directory).has_value(); }));
  FrozenDirectory disk(directory);
  if (!disk.frozen()) GTEST_SKIP() << "a directory cannot be made immutable here";

  const Ctl moved = migrating.finish();

  EXPECT_EQ(moved.code, 0) << moved;
  EXPECT_EQ(moved.text("result"), "completed") << moved;
  const auto record = daemon::read_session(directory);
  ASSERT_EQ(record->outcome(), v1::OUTCOME_OPEN);
  v1::PeerHello question;
  question.set_version(migration::kPeerVersion);
  question.set_purpose(v1::QUERY_SESSION);
  question.set_session(record->session());
  question.mutable_vm()->set_id(record->vm());
  const auto answer = ask_peer_raw(a_->listen(), question);
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(answer->answer().outcome(), "started");
  EXPECT_TRUE(b_->verified_after_now("web"));

  disk.thaw();
  EXPECT_TRUE(wait_until([&] { return a_->workers().empty(); })) << "its worker is no longer needed";
  EXPECT_EQ(daemon::read_session(directory)->outcome(), v1::OUTCOME_STARTED);
  EXPECT_TRUE(becomes(*a_, "moved"));
}

TEST_F(DaemonResolve, MigrationGoesOnWithoutTheSourceDaemon) {
  RunningCtl migrating = a_->begin(migration("precopy", "delay:converged"));
  ASSERT_TRUE(copies(*a_));
  a_->kill_daemon();
  const Ctl lost = migrating.finish();
  EXPECT_EQ(lost.code, 4) << "the daemon was lost with the outcome open\n" << lost;
  a_->start();
  EXPECT_TRUE(becomes(*a_, "moved")) << a_->state("web");
  EXPECT_EQ(Host::text(a_->vm("web"), "moved_to"), b_->listen());
  EXPECT_TRUE(wait_until([&] { return a_->workers().empty(); }));
  EXPECT_EQ(b_->state("web"), "running");
  EXPECT_TRUE(b_->verified_after_now("web"));
}

TEST_F(DaemonResolve, MigrationGoesOnWithoutTheDestinationDaemon) {
  RunningCtl migrating = a_->begin(migration("precopy", "delay:converged"));
  ASSERT_TRUE(copies(*a_));
  b_->kill_daemon();
  const Ctl moved = migrating.finish();
  EXPECT_EQ(moved.code, 0) << moved;
  EXPECT_EQ(a_->state("web"), "moved");
  b_->start();
  EXPECT_TRUE(becomes(*b_, "running")) << b_->state("web");
  EXPECT_TRUE(b_->verified_after_now("web"));
  EXPECT_EQ(b_->ctl({"vm", "pause", "web"}).code, 0) << "the adopted VM takes commands";
  EXPECT_EQ(b_->ctl({"vm", "resume", "web"}).code, 0);
}

// Nobody tells A's worker to keep the way back, and B's waits for word of it, for minutes.
TEST_F(DaemonResolve, VmThatStopsDoesNotWaitForItsWayBack) {
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  RunningCtl migrating = a_->begin(migration("suspend", "delay:pause"));
  ASSERT_TRUE(becomes(*a_, "migrating")) << a_->state("web");
  a_->kill_daemon();
  (void)migrating.finish();
  ASSERT_TRUE(becomes(*b_, "running")) << b_->state("web");
  EXPECT_EQ(b_->ctl({"vm", "stop", "web"}).code, 0);
  EXPECT_EQ(b_->daemon_log().find("does not stop"), std::string::npos) << b_->daemon_log();
  a_->start();
  EXPECT_TRUE(becomes(*a_, "moved")) << a_->state("web");
  EXPECT_TRUE(wait_until([&] { return a_->workers().empty(); }));
}

TEST_F(DaemonResolve, RestartedSourceDaemonFindsTheMigrationAndCanCancelIt) {
  // It never converges: under way until somebody ends it.
  RunningCtl migrating = a_->begin({"migrate", "web", "--to", b_->listen(), "--mode", "precopy", "--max-downtime",
                                    "1us", "--test-hook", "delay:round"});
  ASSERT_TRUE(copies(*a_));
  a_->kill_daemon();
  (void)migrating.finish();
  a_->start();
  ASSERT_EQ(a_->state("web"), "migrating");
  EXPECT_EQ(a_->ctl({"vm", "pause", "web"}).code, 1) << "its worker still migrates it";
  const Ctl cancelled = a_->ctl({"migrate", "cancel", "web"});
  EXPECT_EQ(cancelled.code, 0) << cancelled;
  EXPECT_TRUE(becomes(*a_, "running")) << a_->state("web");
  EXPECT_TRUE(a_->verified_after_now("web"));
  EXPECT_TRUE(wait_until([&] { return b_->state("web").empty(); })) << b_->state("web");
}

}  // namespace
}  // namespace fvmm::test
