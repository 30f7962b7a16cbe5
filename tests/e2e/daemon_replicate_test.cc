// Continuous templating between two real daemons, and recovery when the source is gone.
#include "support/replicated.h"

namespace fvmm::test {
namespace {

TEST_F(DaemonReplicate, SourceHostIsGoneAndTheVmGoesOnAtThePeer) {
  const auto id = Host::text(a_->vm("web").at("config").as_object(), "id");
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "web"}).code, 0);
  ASSERT_EQ(replicate().code, 0) << "the template that B lacks travels first";
  ASSERT_TRUE(seals(5));
  const std::uint64_t step = step_of(*a_);
  ASSERT_TRUE(seals(3));
  kill_source();

  const Ctl unsure = recover();
  EXPECT_EQ(unsure.code, 1) << unsure;
  EXPECT_NE(unsure.err.find("--source-is-dead"), std::string::npos) << unsure;
  const Ctl recovered = recover({"--source-is-dead"});
  ASSERT_EQ(recovered.code, 0) << recovered;
  EXPECT_GT(recovered.number("generation"), 0);
  EXPECT_GT(recovered.number("lost_ms"), 0);
  EXPECT_EQ(b_->state("web"), "running");
  EXPECT_EQ(Host::text(b_->vm("web").at("config").as_object(), "id"), id) << "a recovered VM is the same VM";
  EXPECT_TRUE(b_->verified_after_now("web"));
  EXPECT_GT(step_of(*b_), step) << "it goes on from after that";

  a_->start();
  EXPECT_EQ(a_->state("web"), "lost");
  const Ctl twice = a_->ctl({"vm", "start", "web"});
  EXPECT_EQ(twice.code, 1) << twice;
  EXPECT_NE(twice.err.find("recovered"), std::string::npos) << twice;
}

TEST_F(DaemonReplicate, VmOnNoTemplateIsReplicatedAndRecoveredToo) {
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(3));
  kill_source();
  const Ctl recovered = recover({"--source-is-dead"});
  ASSERT_EQ(recovered.code, 0) << recovered;
  EXPECT_TRUE(b_->verified_after_now("web"));
}

TEST_F(DaemonReplicate, AGenerationOfMoreRunsThanCanBeMappedIsRecoveredToo) {
  ASSERT_TRUE(boot_workload(*a_, "wide", "128M", "seed=9 ws=64 rate=20000"));  // pages all over 64 MiB
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "wide"}).code, 0);
  ASSERT_EQ(a_->ctl({"replicate", "start", "wide", "--to", b_->listen(), "--interval", "100ms"}).code, 0);
  const auto scattered = [&] {
    const Ctl list = b_->ctl({"template", "list"});
    const auto* all = list.at("templates").if_array();
    return all != nullptr && std::ranges::any_of(*all, [](const auto& one) {
             return one.at("ref").at("name").as_string().starts_with("wide.") && !one.at("mappable").as_bool();
           });
  };
  ASSERT_TRUE(wait_until(scattered)) << b_->ctl({"template", "list"});
  kill_source();
  const Ctl recovered = b_->ctl({"replicate", "recover", "wide", "--source-is-dead"});
  ASSERT_EQ(recovered.code, 0) << recovered;
  EXPECT_TRUE(b_->verified_after_now("wide"));
}

TEST_F(DaemonReplicate, RecoveryIsRefusedWhileTheSourceRunsIt) {
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(2));
  for (const auto& words : {std::vector<std::string>{}, std::vector<std::string>{"--source-is-dead"}}) {
    const Ctl refused = recover(words);
    EXPECT_EQ(refused.code, 1) << refused;
    EXPECT_NE(refused.err.find("two of it would run"), std::string::npos) << refused;
  }
  EXPECT_EQ(b_->state("web"), "");
  EXPECT_TRUE(seals(2)) << "and it goes on";
  const Ctl unknown = b_->ctl({"replicate", "recover", "other"});
  EXPECT_EQ(unknown.code, 1) << unknown;
  EXPECT_NE(unknown.err.find("other"), std::string::npos) << unknown;
}

// The operator was wrong: the source's daemon was gone, its worker was not. The first word from the peer freezes it.
TEST_F(DaemonReplicate, SourceThatWasNotDeadIsFenced) {
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(3));
  a_->kill_daemon();
  const Ctl recovered = recover({"--source-is-dead"});
  ASSERT_EQ(recovered.code, 0) << recovered;
  EXPECT_TRUE(b_->verified_after_now("web"));
  a_->start();
  ASSERT_TRUE(wait_until([&] { return a_->state("web") == "moved"; })) << a_->state("web");
  EXPECT_EQ(Host::text(a_->vm("web"), "moved_to"), b_->listen());
  EXPECT_TRUE(cluster_.at_most_one_runs("web"));
  EXPECT_TRUE(b_->verified_after_now("web"));
}

TEST_F(DaemonReplicate, FencedGuestStopsAlthoughACommandHoldsItForLong) {
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(3));
  ASSERT_NE(a_->serial("web"), "");
  RunningCtl long_one = a_->begin({"template", "create", "slow", "--from", "web", "--test-hook", "stall:seal"});
  ASSERT_TRUE(wait_until(
      [&] { return Host::text(a_->vm("web"), "detail").find("template create slow") != std::string::npos; }));
  a_->kill_daemon();
  ASSERT_EQ(recover({"--source-is-dead"}).code, 0);
  // Its worker is still in the middle of the template, and the guest stands still all the same.
  EXPECT_TRUE(wait_until([&] {
    const std::size_t before = a_->serial("web").size();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));  // six beats
    return a_->serial("web").size() == before;
  }));
  EXPECT_EQ(a_->workers().size(), 1U);
  EXPECT_TRUE(b_->verified_after_now("web"));
  EXPECT_NE(long_one.finish().code, 0);
  a_->start();
  ASSERT_TRUE(wait_until([&] { return a_->state("web") == "moved"; })) << a_->state("web");
  EXPECT_TRUE(wait_until([&] { return a_->workers().empty(); })) << "whatever its command waits for";
  EXPECT_TRUE(cluster_.at_most_one_runs("web"));
}

TEST_F(DaemonReplicate, PeerThatIsRestartedIsFoundAgainAndNothingStartsOver) {
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "web"}).code, 0);
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(3));
  double sealed = 0;
  for (int life = 0; life < 2; ++life) {
    sealed = a_->ctl({"replicate", "status", "web"}).number("generation_sealed");
    b_->kill_daemon();
    b_->start();
    ASSERT_TRUE(seals(3));
  }
  const Ctl status = a_->ctl({"replicate", "status", "web"});
  EXPECT_GE(status.number("reconnects"), 2) << status;
  EXPECT_GE(status.number("generation_sealed"), sealed + 3) << "it goes on from there";
  kill_source();
  ASSERT_EQ(recover({"--source-is-dead"}).code, 0);
  EXPECT_TRUE(b_->verified_after_now("web"));
}

TEST_F(DaemonReplicate, CommandsOnAReplicatedVmWorkOrSayWhatIsUnderWay) {
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(1));
  const Ctl again = replicate();
  EXPECT_EQ(again.code, 1) << again;
  EXPECT_NE(again.err.find("already"), std::string::npos) << again;
  const Ctl away = a_->ctl({"migrate", "web", "--to", b_->listen()});
  EXPECT_EQ(away.code, 1) << away;
  EXPECT_NE(away.err.find("replicate stop web"), std::string::npos) << away;
  EXPECT_EQ(a_->ctl({"vm", "pause", "web"}).code, 0);
  EXPECT_TRUE(seals(2)) << "a paused VM has generations, too";
  EXPECT_EQ(a_->ctl({"vm", "resume", "web"}).code, 0);
  EXPECT_EQ(a_->ctl({"template", "create", "meanwhile", "--from", "web"}).code, 0);
  EXPECT_TRUE(seals(2));
  const Ctl stopped = a_->ctl({"replicate", "stop", "web"});
  EXPECT_EQ(stopped.code, 0) << stopped;
  EXPECT_EQ(stopped.text("state"), "stopped");
  EXPECT_EQ(a_->ctl({"replicate", "status", "web"}).code, 1);
  EXPECT_TRUE(a_->verified_after_now("web"));
  const Ctl moved = a_->ctl({"migrate", "web", "--to", b_->listen(), "--max-downtime", "100ms"});
  EXPECT_EQ(moved.code, 0) << moved;
}

TEST_F(DaemonReplicate, VmThatMovedOnAfterItsReplicaIsNotRecoveredBesideItself) {
  Host& third = cluster_.add("C");
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(2));
  stop_untold();
  ASSERT_EQ(a_->ctl({"migrate", "web", "--to", third.listen(), "--max-downtime", "100ms"}).code, 0);
  const Ctl refused = recover();
  EXPECT_EQ(refused.code, 1) << refused;
  EXPECT_NE(refused.err.find("moved to " + third.listen()), std::string::npos) << refused;
  EXPECT_TRUE(third.verified_after_now("web"));
  EXPECT_TRUE(cluster_.at_most_one_runs("web"));
}

TEST_F(DaemonReplicate, EndedReplicationLeavesNoReplicaAtThePeer) {
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "web"}).code, 0);
  for (int turn = 0; turn < 2; ++turn) {
    ASSERT_EQ(replicate().code, 0);
    ASSERT_TRUE(seals(3));
    EXPECT_GT(generations_at_b(), 0);
    const Ctl stopped = a_->ctl({"replicate", "stop", "web"});
    ASSERT_EQ(stopped.code, 0) << stopped;
    EXPECT_EQ(stopped.text("state"), "stopped");
    EXPECT_NE(stopped.text("detail").find("has dropped the replica"), std::string::npos) << stopped;
    EXPECT_EQ(generations_at_b(), 0);
    const Ctl refused = recover({"--source-is-dead"});
    EXPECT_EQ(refused.code, 1) << refused;
    EXPECT_NE(refused.err.find("has been ended at " + a_->listen()), std::string::npos) << refused;
  }
  EXPECT_TRUE(a_->verified_after_now("web"));
}

TEST_F(DaemonReplicate, PeerThatWasAwayHearsOfTheEndWhenItIsBack) {
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(2));
  b_->kill_daemon();
  const Ctl stopped = a_->ctl({"replicate", "stop", "web"});
  ASSERT_EQ(stopped.code, 0) << stopped;
  EXPECT_NE(stopped.text("detail").find(b_->listen() + " still holds the replica"), std::string::npos) << stopped;
  a_->kill_daemon();  // and the next fvmmd knows
  a_->start();
  b_->start();
  ASSERT_TRUE(wait_until([&] { return generations_at_b() == 0; }));
  EXPECT_TRUE(wait_until([&] { return std::filesystem::is_empty(a_->state_directory() / "replica-stops"); }));
  const Ctl refused = recover({"--source-is-dead"});
  EXPECT_NE(refused.err.find("has been ended"), std::string::npos) << refused;
  EXPECT_TRUE(a_->verified_after_now("web"));
}

TEST_F(DaemonReplicate, EndThatThePeerHearsAfterItsRecoveryFencesTheSource) {
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(3));
  b_->kill_daemon();
  ASSERT_EQ(a_->ctl({"replicate", "stop", "web"}).code, 0);
  a_->kill_daemon();  // its guest goes on, and no link to B is left
  b_->start();
  ASSERT_EQ(recover({"--source-is-dead"}).code, 0);
  a_->start();
  ASSERT_TRUE(wait_until([&] { return a_->state("web") == "moved"; })) << a_->state("web");
  EXPECT_EQ(Host::text(a_->vm("web"), "moved_to"), b_->listen());
  EXPECT_TRUE(cluster_.at_most_one_runs("web"));
  EXPECT_TRUE(b_->verified_after_now("web"));
}

TEST_F(DaemonReplicate, PeerWithoutRoomForStagingSaysSoAndTheSourceShowsIt) {
  Host& full = cluster_.add("C", {"--test-hooks", "--warm-workers", "0", "--replica-staging", "63M"});
  ASSERT_EQ(a_->ctl({"replicate", "start", "web", "--to", full.listen(), "--interval", "20ms"}).code, 0);
  Ctl status;
  ASSERT_TRUE(wait_until([&] {
    status = a_->ctl({"replicate", "status", "web"});
    return status.text("state") == "refused";
  })) << status;
  for (const auto* part : {"63", "64", "--replica-staging", "web", "tried again every"}) {
    EXPECT_NE(status.text("detail").find(part), std::string::npos) << part << "\n" << status;
  }
  full.end_daemon();
  EXPECT_TRUE(a_->verified_after_now("web"));
}

TEST_F(DaemonReplicate, SecondRecoveryIsRefusedAndTakesNoRight) {
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(2));
  kill_source();
  ASSERT_EQ(recover({"--source-is-dead"}).code, 0);
  const Ctl again = recover({"--source-is-dead"});
  EXPECT_EQ(again.code, 1) << again;
  EXPECT_NE(again.err.find("running"), std::string::npos) << again;
  // Had it taken another token, the VM would be fenced when it is replicated back.
  a_->start();
  ASSERT_EQ(a_->ctl({"replicate", "stop", "web"}).code, 0);
  ASSERT_EQ(a_->ctl({"vm", "rm", "web"}).code, 0);
  ASSERT_EQ(b_->ctl({"replicate", "start", "web", "--to", a_->listen(), "--interval", "20ms"}).code, 0);
  ASSERT_TRUE(wait_until([&] { return b_->ctl({"replicate", "status", "web"}).number("generation_sealed") >= 3; }));
  EXPECT_TRUE(b_->verified_after_now("web"));
}

TEST_F(DaemonReplicate, BadRequestsAreNamed) {
  const auto fails = [&](const std::vector<std::string>& words, const std::string& part) {
    const Ctl result = a_->ctl(words);
    EXPECT_NE(result.code, 0) << result;
    EXPECT_NE((result.err + result.out).find(part), std::string::npos) << result;
  };
  fails({"replicate", "start", "nobody", "--to", b_->listen()}, "nobody");
  fails({"replicate", "start", "web", "--to", "192.0.2.1:7000"}, "loopback");
  fails({"replicate", "start", "web", "--to", b_->listen(), "--interval", "1ms"}, "interval");
  fails({"replicate", "start", "web", "--to", b_->listen(), "--buffer", "1M"}, "buffer");
  fails({"replicate", "start", "web", "--to", b_->listen(), "--bandwidth", "1Kbit"}, "bandwidth");
  fails({"replicate", "stop", "web"}, "not being replicated");
  fails({"replicate", "status", "web"}, "not being replicated");
  EXPECT_TRUE(a_->verified_after_now("web"));
}

}  // namespace
}  // namespace fvmm::test
