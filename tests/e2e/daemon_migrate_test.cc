// Migrations that succeed, between two real daemons: the guest verifies its whole memory wherever it arrives.
#include "support/daemons.h"

namespace fvmm::test {
namespace {

constexpr double kGuestPages = 64 * 256;  // of a guest of 64 MiB

class DaemonMigrate : public TwoHostsWithWeb {
 protected:
  Ctl migrate(Host& from, Host& to, std::vector<std::string> words) {
    words.insert(words.begin(), {"migrate", "web", "--to", to.listen()});
    return from.ctl(words);
  }
  void expect_moved(Host& from, Host& to) {
    EXPECT_TRUE(wait_until([&] { return to.state("web") == "running"; })) << to.state("web");
    EXPECT_EQ(from.state("web"), "moved");
    EXPECT_EQ(Host::text(from.vm("web"), "moved_to"), to.listen());
    EXPECT_TRUE(wait_until([&] { return from.workers().empty(); })) << "its worker ends once it has kept the way back";
    EXPECT_TRUE(to.verified_after_now("web"));
  }
};

TEST_F(DaemonMigrate, SuspendMovesTheDeltaAndReportsEveryFigure) {
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  ASSERT_TRUE(a_->next_heartbeat("web"));  // it has written since
  const auto id = Host::text(a_->vm("web").at("config").as_object(), "id");

  const Ctl moved = migrate(*a_, *b_, {"--mode", "suspend"});

  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_EQ(moved.text("result"), "completed");
  EXPECT_EQ(moved.text("mode"), "suspend");
  EXPECT_EQ(moved.text("template"), "base");
  EXPECT_EQ(moved.number("generation"), 1);
  EXPECT_EQ(moved.number("rounds"), 0);
  EXPECT_GT(moved.number("pages_sent"), 0);
  EXPECT_LT(moved.number("pages_sent"), kGuestPages / 2) << "only what differs from the template travels";
  EXPECT_GT(moved.number("bytes_sent"), 4096);
  EXPECT_GT(moved.number("downtime_ms"), 0);
  EXPECT_GT(moved.number("setup_ms"), 0);
  EXPECT_GE(moved.number("duration_ms"), moved.number("setup_ms") + moved.number("downtime_ms"));
  ASSERT_TRUE(moved.at("phases").is_object()) << moved;
  const auto& phases = moved.at("phases").as_object();
  for (const auto* phase : {"setup", "pause", "save", "harvest", "pages", "state", "prepare", "commit", "settle"}) {
    EXPECT_TRUE(phases.contains(phase)) << phase << " is missing\n" << moved;
  }
  expect_moved(*a_, *b_);
  EXPECT_EQ(Host::text(b_->vm("web").at("config").as_object(), "id"), id) << "a migrated VM is the same VM";
}

TEST_F(DaemonMigrate, PrecopyMovesEverythingOverOneAndOverFourConnections) {
  const Ctl there = migrate(*a_, *b_, {"--mode", "precopy", "--connections", "4", "--max-downtime", "200ms"});
  ASSERT_EQ(there.code, 0) << there;
  EXPECT_EQ(there.text("mode"), "precopy");
  EXPECT_EQ(there.text("template"), "");
  EXPECT_GE(there.number("rounds"), 1);
  EXPECT_GE(there.number("pages_sent"), kGuestPages);
  expect_moved(*a_, *b_);

  const Ctl back = migrate(*b_, *a_, {"--mode", "precopy", "--connections", "1", "--max-downtime", "200ms"});
  ASSERT_EQ(back.code, 0) << back;
  EXPECT_GE(back.number("pages_sent"), kGuestPages);
  expect_moved(*b_, *a_);
}

TEST_F(DaemonMigrate, SuspendGoesThereAndBackAndThereAgain) {
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  double token = 0;
  for (int leg = 0; leg < 3; ++leg) {
    SCOPED_TRACE(leg);
    Host& from = leg % 2 == 0 ? *a_ : *b_;
    Host& to = leg % 2 == 0 ? *b_ : *a_;
    const Ctl moved = migrate(from, to, {"--mode", "suspend", "--connections", leg == 1 ? "4" : "1"});
    ASSERT_EQ(moved.code, 0) << moved;
    if (leg == 0) {
      EXPECT_EQ(moved.text("template"), "base");
    }
    expect_moved(from, to);
    const double now = to.vm("web").at("fencing_token").to_number<double>();
    EXPECT_GT(now, token) << "each hand-over makes a newer right to run";
    token = now;
  }
}

TEST_F(DaemonMigrate, AutoPicksByTheDeltaAndSaysWhy) {
  const Ctl whole = migrate(*a_, *b_, {"--max-downtime", "10ms"});  // 64 MiB do not fit into that
  ASSERT_EQ(whole.code, 0) << whole;
  EXPECT_EQ(whole.text("mode"), "live");
  EXPECT_NE(whole.text("why_mode").find("more than --max-downtime 10.0 ms"), std::string::npos) << whole;
  ASSERT_TRUE(share_template(*b_, *a_, "web", "base"));

  const Ctl delta = migrate(*b_, *a_, {"--mode", "auto", "--max-downtime", "100ms"});
  ASSERT_EQ(delta.code, 0) << delta;
  EXPECT_EQ(delta.text("mode"), "suspend");
  EXPECT_NE(delta.text("why_mode").find("within --max-downtime 100.0 ms"), std::string::npos) << delta;
  expect_moved(*b_, *a_);
}

TEST_F(DaemonMigrate, LiveMovesTheDeltaInRoundsOverOneAndOverThreeConnections) {
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  ASSERT_TRUE(a_->next_heartbeat("web"));
  for (int leg = 0; leg < 4; ++leg) {
    Host& from = leg % 2 == 0 ? *a_ : *b_;
    Host& to = leg % 2 == 0 ? *b_ : *a_;
    const Ctl moved =
        migrate(from, to, {"--mode", "live", "--max-downtime", "50ms", "--connections", leg < 2 ? "1" : "3"});
    ASSERT_EQ(moved.code, 0) << moved;
    EXPECT_EQ(moved.text("mode"), "live");
    if (leg == 0) {
      EXPECT_EQ(moved.text("template"), "base");
    }
    EXPECT_GE(moved.number("rounds"), 1);
    EXPECT_LT(moved.number("pages_sent"), kGuestPages) << "the template does not travel";
    EXPECT_TRUE(moved.at("phases").as_object().contains("copy")) << moved;
    expect_moved(from, to);
  }
}

TEST_F(DaemonMigrate, LiveWithoutATemplateCarriesWhatTheGuestTouched) {
  const Ctl moved = migrate(*a_, *b_, {"--mode", "live", "--max-downtime", "100ms"});
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_EQ(moved.text("template"), "");
  expect_moved(*a_, *b_);
}

TEST_F(DaemonMigrate, TemplateThatThePeerLacksTravelsFirstAndIsReportedApart) {
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "web"}).code, 0);
  const Ctl moved = migrate(*a_, *b_, {"--max-downtime", "100ms"});
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_GT(moved.number("template_push_ms"), 0);
  EXPECT_GT(moved.number("template_push_bytes"), 4096 * 1000);
  EXPECT_LT(moved.number("pages_sent"), kGuestPages / 2) << "and only the delta after it";
  expect_moved(*a_, *b_);
  const Ctl back = migrate(*b_, *a_, {"--max-downtime", "100ms"});
  ASSERT_EQ(back.code, 0) << back;
  EXPECT_EQ(back.number("template_push_ms"), 0) << "A has it";
}

TEST_F(DaemonMigrate, GuestTooFastForTheLinkIsHeldBackWhereAllowed) {
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  ASSERT_EQ(a_->ctl({"vm", "stop", "web"}).code, 0);
  ASSERT_TRUE(boot_workload(*a_, "fast", "128M", "seed=7 ws=48 rate=1000000"));
  const std::vector<std::string> live{"migrate",        "fast", "--to",        b_->listen(), "--mode",    "live",
                                      "--max-downtime", "50ms", "--bandwidth", "400Mbit",    "--timeout", "50s"};
  std::vector<std::string> allowed = live;
  allowed.emplace_back("--allow-throttle");
  const Ctl moved = a_->ctl(allowed);
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_GT(moved.number("throttle_percent"), 0) << moved;
  EXPECT_TRUE(b_->verified_after_now("fast")) << "and is held back no longer";
}

TEST_F(DaemonMigrate, WayBackCarriesOnlyWhatWasWrittenSince) {
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  // Pages that nobody writes again: they travel once, and never back.
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(a_->next_heartbeat("web"));
  const Ctl there = migrate(*a_, *b_, {"--mode", "suspend"});
  ASSERT_EQ(there.code, 0) << there;
  EXPECT_NE(there.text("way_back"), "");
  ASSERT_TRUE(wait_until([&] { return a_->workers().empty(); })) << "sealed";
  ASSERT_TRUE(b_->next_heartbeat("web"));  // B has heard of it
  const Ctl back = migrate(*b_, *a_, {"--mode", "suspend"});
  ASSERT_EQ(back.code, 0) << back;
  EXPECT_NE(back.text("why_mode").find("way back"), std::string::npos) << back;
  expect_moved(*b_, *a_);
}

TEST_F(DaemonMigrate, LostWayBackCostsNothingButItsPages) {
  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  ASSERT_EQ(migrate(*a_, *b_, {"--mode", "suspend"}).code, 0);
  ASSERT_TRUE(wait_until([&] { return a_->workers().empty(); }));
  int removed = 0;
  for (const auto& entry : std::filesystem::directory_iterator(a_->state_directory() / "templates")) {
    const std::string name = entry.path().filename();
    if (name.find(".back@") == std::string::npos) continue;
    EXPECT_EQ(a_->ctl({"template", "rm", name}).code, 0);
    ++removed;
  }
  EXPECT_EQ(removed, 1);
  const Ctl back = migrate(*b_, *a_, {"--mode", "suspend"});
  ASSERT_EQ(back.code, 0) << back;
  EXPECT_EQ(back.text("template"), "base");
  EXPECT_EQ(back.text("why_mode"), "asked for");
  expect_moved(*b_, *a_);
}

TEST_F(DaemonMigrate, PausedGuestArrivesPausedAndGoesOnWhenResumed) {
  ASSERT_EQ(a_->ctl({"vm", "pause", "web"}).code, 0);
  for (const auto* mode : {"suspend", "precopy"}) {
    SCOPED_TRACE(mode);
    Host& from = a_->state("web") == "paused" ? *a_ : *b_;
    Host& to = &from == a_ ? *b_ : *a_;
    const Ctl moved = migrate(from, to, {"--mode", mode});
    ASSERT_EQ(moved.code, 0) << moved;
    ASSERT_TRUE(wait_until([&] { return to.state("web") == "paused"; })) << to.state("web");
    EXPECT_EQ(from.state("web"), "moved");
    EXPECT_EQ(cluster_.runners("web"), 0);
  }
  ASSERT_EQ(a_->state("web"), "paused");
  const std::string written = a_->serial("web");
  ASSERT_EQ(a_->ctl({"vm", "resume", "web"}).code, 0);
  EXPECT_TRUE(a_->verified_after_now("web"));
  EXPECT_EQ(a_->state("web"), "running");
  EXPECT_EQ(a_->serial("web").substr(0, written.size()), written);
}

TEST_F(DaemonMigrate, PausedGuestStaysPausedWhenTheMigrationFails) {
  ASSERT_EQ(a_->ctl({"vm", "pause", "web"}).code, 0);
  const Ctl failed = migrate(*a_, *b_, {"--mode", "suspend", "--test-hook", "fail:prepared"});
  EXPECT_EQ(failed.code, 1) << failed;
  EXPECT_EQ(a_->state("web"), "paused");
  ASSERT_EQ(a_->ctl({"vm", "resume", "web"}).code, 0);
  EXPECT_TRUE(a_->verified_after_now("web"));
}

TEST_F(DaemonMigrate, VmThatMovedCannotBeStartedHereAndMayBeRemoved) {
  ASSERT_EQ(migrate(*a_, *b_, {"--mode", "suspend"}).code, 0);
  const Ctl started = a_->ctl({"vm", "start", "web"});
  EXPECT_EQ(started.code, 1) << started;
  EXPECT_NE(started.err.find(b_->listen()), std::string::npos) << "says where it runs\n" << started;
  EXPECT_EQ(a_->ctl({"vm", "rm", "web"}).code, 0);
  EXPECT_EQ(a_->state("web"), "");
  EXPECT_TRUE(b_->verified_after_now("web")) << "removing the record here touches nothing there";
}

}  // namespace
}  // namespace fvmm::test
