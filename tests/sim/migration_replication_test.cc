// Continuous templating over links that break and peers that fail: the newest sealed generation is always the guest at
// one instant, and the work goes on.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <random>
#include <set>

#include "support/fake_migration.h"
#include "support/fake_replica.h"

namespace fvmm::testing {
namespace {

class ReplicationTest : public ::testing::TestWithParam<bool> {
 protected:
  void SetUp() override { spdlog::default_logger_raw()->set_level(spdlog::level::off); }
};

TEST_P(ReplicationTest, EachGenerationIsTheGuestAtItsInstant) {
  FakeReplication replication({.seed = sim_seed(), .on_template = GetParam()});
  replication.start();
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(replication.sealed(1));
    const auto now = replication.status();
    EXPECT_GE(now.generation_captured(), now.generation_sent());
    EXPECT_GE(now.generation_sent(), now.generation_held());
    EXPECT_GE(now.generation_held(), now.generation_sealed());
    EXPECT_GE(now.pages_captured(), now.pages_sent());
    EXPECT_GE(now.pages_sent(), now.pages_acknowledged());
    EXPECT_EQ(now.state(), "replicating");
  }
  replication.stop();
  EXPECT_TRUE(replication.newest_is_an_instant());
  EXPECT_EQ(replication.status().state(), "stopped");
  EXPECT_EQ(replication.status().reconnects(), 0U);
  EXPECT_FALSE(replication.guest().since_generation) << "the guest collects no longer";
}

TEST_P(ReplicationTest, OnlyWhatANewGenerationNeedsIsKept) {
  FakeReplication replication({.seed = sim_seed(), .on_template = GetParam()});
  replication.start();
  ASSERT_TRUE(replication.sealed(3 * migration::kReplicaChainMax));
  replication.stop();
  const auto all = replication.peer().store().list();
  ASSERT_TRUE(all.ok());
  EXPECT_LE(all->size(), migration::kReplicaChainMax + 2);
  for (const auto& info : *all) EXPECT_LE(info.chain, migration::kReplicaChainMax + 2) << info.name;
  EXPECT_TRUE(replication.newest_is_an_instant());
}

TEST_P(ReplicationTest, LinksThatAreCutAnywhereCostTimeAndNothingElse) {
  std::mt19937_64 random(sim_seed());
  FakeReplication replication({.seed = sim_seed(), .on_template = GetParam()});
  replication.peer().link = [&](unsigned number) -> Result<LinkScript> {
    if (number >= 12) return LinkScript{};
    if (random() % 5 == 0) return Error(Errc::kUnavailable, "no route");
    const std::uint64_t most = random() % 3 == 0 ? 2000 : 2'000'000;
    return random() % 2 == 0 ? LinkScript{.forward = {.cut_after_bytes = random() % most}, .backward = {}}
                             : LinkScript{.forward = {}, .backward = {.cut_after_bytes = random() % 300}};
  };
  replication.start();
  ASSERT_TRUE(replication.wait([&] { return replication.status().reconnects() >= 12; }));
  ASSERT_TRUE(replication.sealed(5));
  replication.stop();
  EXPECT_TRUE(replication.newest_is_an_instant());
}

TEST_P(ReplicationTest, PeerThatFailsAtAnyStepIsTriedAgain) {
  for (const std::string at : {"ready", "pages", "held", "seal", "sealed"}) {
    FakeReplication replication({.seed = sim_seed(), .on_template = GetParam()});
    int failures = 2;
    replication.peer().on_step = [&](std::string_view step) -> Status {
      if (step == at && failures-- > 0) return Error(Errc::kResourceExhausted, "the disk is full");
      return {};
    };
    replication.start();
    ASSERT_TRUE(replication.wait([&] { return replication.status().reconnects() >= 2; })) << at;
    ASSERT_TRUE(replication.sealed(3)) << at;
    replication.stop();
    EXPECT_TRUE(replication.newest_is_an_instant()) << at;
  }
}

TEST_P(ReplicationTest, SourceStepThatFailsIsTriedAgain) {
  for (const std::string at : {"connect", "capture", "captured", "end", "generation", "sealed"}) {
    FakeReplication replication({.seed = sim_seed(), .on_template = GetParam()});
    std::atomic<int> failures{2};
    replication.on_step = [&](std::string_view step) -> Status {
      if (step == at && failures-- > 0) return Error(Errc::kInternal, "failed at " + at);
      return {};
    };
    replication.start();
    ASSERT_TRUE(replication.sealed(4)) << at;
    replication.stop();
    EXPECT_LE(failures, 0) << at << " was reached";
    EXPECT_TRUE(replication.newest_is_an_instant()) << at;
  }
}

TEST_P(ReplicationTest, FullBufferSlowsTemplatingAndLosesNothing) {
  FakeReplication replication({.seed = sim_seed(),
                               .on_template = GetParam(),
                               .pages_per_step = 3000,
                               .buffer_bytes = migration::kCaptureBufferMin});
  replication.start();
  // Every page of the guest is dirtied between two looks: no pause could hold that, and the status says so.
  ASSERT_TRUE(replication.wait([&] { return replication.status().detail().find("--buffer") != std::string::npos; }));
  ASSERT_TRUE(replication.with_guest([](migration::Guest& guest) {
    fake(guest).set_pages_per_step(30);
    return Status();
  }));
  ASSERT_TRUE(replication.sealed(3));
  replication.stop();
  EXPECT_GT(replication.status().buffer_waits(), 0U);
  EXPECT_TRUE(replication.newest_is_an_instant());
}

TEST_P(ReplicationTest, RecoveryAtThePeerFreezesTheSourceForGood) {
  FakeReplication replication({.seed = sim_seed(), .on_template = GetParam()});
  replication.start();
  ASSERT_TRUE(replication.sealed(2));
  replication.peer().recovered = true;
  ASSERT_TRUE(replication.wait([&] { return replication.status().state() == "fenced"; }));
  EXPECT_TRUE(replication.fenced());
  const std::uint64_t sealed = replication.status().generation_sealed();
  EXPECT_FALSE(fake(replication.guest()).running());
  EXPECT_EQ(replication.status().state(), "fenced");
  replication.stop();
  EXPECT_EQ(replication.status().state(), "fenced");
  EXPECT_EQ(replication.status().generation_sealed(), sealed) << "nothing counts as sealed after the recovery";
  EXPECT_TRUE(replication.newest_is_an_instant());
}

TEST_P(ReplicationTest, FencedGuestStopsAlthoughALongCommandHasIt) {
  FakeReplication replication({.seed = sim_seed(), .on_template = GetParam()});
  replication.fence_failures = 1;
  replication.start();
  ASSERT_TRUE(replication.sealed(2));
  ASSERT_TRUE(replication.with_guest([&](migration::Guest& guest) -> Status {  // the command: it ends after the fence
    replication.peer().recovered = true;
    replication.peer().cut();
    EXPECT_TRUE(replication.wait([&] { return replication.fenced(); }));
    EXPECT_FALSE(fake(guest).running());
    const Status resumed = guest.machine->resume();
    EXPECT_FALSE(resumed);
    EXPECT_EQ(resumed.error().code(), Errc::kAborted);
    EXPECT_FALSE(fake(guest).running()) << "whatever the command does at its end";
    return {};
  }));
  EXPECT_TRUE(replication.wait([&] { return replication.status().state() == "fenced"; }));
}

TEST_P(ReplicationTest, AnotherReplicationOfTheSameVmBeginsANewLine) {
  FakeReplication replication({.seed = sim_seed(), .on_template = GetParam()});
  std::uint64_t before = 0;
  for (int life = 0; life < 3; ++life) {
    replication.start();
    ASSERT_TRUE(replication.sealed(2));
    replication.stop();
    EXPECT_TRUE(replication.newest_is_an_instant());
    const auto newest = migration::newest_generation(replication.peer().store(), fake_config().id());
    EXPECT_GT(newest->generation, before);
    before = newest->generation;
  }
}

INSTANTIATE_TEST_SUITE_P(Bases, ReplicationTest, ::testing::Bool(),
                         [](const auto& base) { return base.param ? "OnATemplate" : "OnTheZeroTemplate"; });

}  // namespace
}  // namespace fvmm::testing
