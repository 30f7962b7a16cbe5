// Replication between two real daemons, of which one process or both of a host are killed at each step of a generation.
#include "support/replicated.h"

namespace fvmm::test {
namespace {

std::string name_of(const ::testing::TestParamInfo<const char*>& step) {
  std::string name = step.param;
  std::erase_if(name, [](char c) { return c == ':' || c == '-'; });
  return name;
}

/// A process is killed at a step of a generation; the newest sealed one starts and verifies all the same.
class KilledAt : public DaemonReplicate, public ::testing::WithParamInterface<const char*> {};

TEST_P(KilledAt, NewestSealedGenerationStartsAndVerifies) {
  const std::string step = GetParam();
  const bool peer = step.starts_with("peer-");
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "web"}).code, 0);
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(3));
  stop_untold();
  (void)replicate({"--test-hook", step});  // its answer may be lost with the worker
  if (peer) {
    ASSERT_TRUE(wait_until([&] { return b_->ctl({"host", "show"}).code != 0; }));
    b_->end_daemon(SIGKILL);
    kill_source();  // first: it would come again, and the hook with it
    b_->start();
  } else {
    ASSERT_TRUE(wait_until([&] { return a_->state("web") == "lost"; }));
  }
  const Ctl recovered = recover(peer ? std::vector<std::string>{"--source-is-dead"} : std::vector<std::string>{});
  ASSERT_EQ(recovered.code, 0) << recovered;
  EXPECT_TRUE(b_->verified_after_now("web"));
  if (peer) a_->start();
  EXPECT_TRUE(cluster_.at_most_one_runs("web"));
}

INSTANTIATE_TEST_SUITE_P(Steps, KilledAt,
                         ::testing::Values("kill:connect", "kill:capture", "kill:captured", "kill:end",
                                           "kill:generation", "kill:sealed", "peer-kill:ready", "peer-kill:pages",
                                           "peer-kill:held", "peer-kill:seal", "peer-kill:sealed"),
                         name_of);

/// The source's worker waits at a step of a generation, and its fvmmd is killed there.
class HeldAt : public DaemonReplicate, public ::testing::WithParamInterface<const char*> {
 protected:
  /// The worker of "web" says so when it comes to the step of its test hook.
  bool held_at(const std::string& step) {
    return wait_until([&] {
      for (const auto& file : std::filesystem::directory_iterator(a_->runtime() / "workers")) {
        if (file.path().extension() != ".log") continue;
        if (read_text(file.path()).find("test hook holds step " + step + "\n") != std::string::npos) return true;
      }
      return false;
    });
  }
};

TEST_P(HeldAt, TheNextFvmmdFindsTheReplicationAndItGoesOn) {
  const std::string step = GetParam();
  ASSERT_EQ(replicate({"--test-hook", "delay:" + step}).code, 0);
  ASSERT_TRUE(held_at(step));
  a_->kill_daemon();
  a_->start();
  const Ctl status = a_->ctl({"replicate", "status", "web"});
  EXPECT_EQ(status.code, 0) << status;
  EXPECT_EQ(status.text("to"), b_->listen()) << status;
  EXPECT_TRUE(seals(3)) << "two may have been captured before";
  EXPECT_TRUE(a_->verified_after_now("web"));
  EXPECT_TRUE(cluster_.at_most_one_runs("web"));
}

TEST_P(HeldAt, TheHostDiesThereAndThePeerStartsTheNewestSealedGeneration) {
  const std::string step = GetParam();
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "web"}).code, 0);
  ASSERT_EQ(replicate().code, 0);
  ASSERT_TRUE(seals(3));
  const double sealed_before = sealed();
  stop_untold();
  ASSERT_EQ(replicate({"--test-hook", "stall:" + step}).code, 0);
  ASSERT_TRUE(held_at(step));
  kill_source();
  const Ctl recovered = recover({"--source-is-dead"});
  ASSERT_EQ(recovered.code, 0) << recovered;
  EXPECT_GE(recovered.number("generation"), sealed_before) << recovered;
  EXPECT_TRUE(b_->verified_after_now("web"));
  a_->start();
  EXPECT_EQ(a_->state("web"), "lost");
  EXPECT_TRUE(cluster_.at_most_one_runs("web"));
}

INSTANTIATE_TEST_SUITE_P(Steps, HeldAt,
                         ::testing::Values("connect", "capture", "captured", "end", "generation", "sealed"), name_of);

}  // namespace
}  // namespace fvmm::test
