// Whole migrations between two fake hosts: what arrives is what was paused.
#include <gtest/gtest.h>

#include <fcntl.h>

#include "support/fake_migration.h"
#include "support/stored_template.h"

namespace fvmm::testing {
namespace {

using migration::Mode;
using migration::SourceState;

struct Shape {
  Mode mode;
  unsigned connections;
  bool on_template;
};

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const Mode mode : {Mode::kSuspend, Mode::kPrecopy, Mode::kLive}) {
    for (unsigned connections = 1; connections <= 4; ++connections) {
      for (const bool on_template : {false, true}) all.push_back({mode, connections, on_template});
    }
  }
  return all;
}

TEST(MigrationSession, MemoryAtTheDestinationEqualsTheSourceAtItsPause) {
  const std::uint64_t seed = sim_seed();
  TempDir directory;
  auto store = *memory::TemplateStore::open(directory.path());
  const auto info = store_template(store, wanted_template("base"), test_memory(7));
  ASSERT_TRUE(info.ok()) << info.error().message();
  const auto opened = memory::OpenTemplate::open(info->directory);
  ASSERT_TRUE(opened.ok());
  std::uint64_t round = 0;
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(::testing::Message() << "mode " << static_cast<int>(shape.mode) << " connections " << shape.connections
                                      << " template " << shape.on_template);
    Scenario scenario;
    scenario.seed = seed + round++;
    scenario.mode = shape.mode;
    scenario.connections = shape.connections;
    if (shape.on_template) {
      scenario.template_file = opened->memory_file();
      scenario.base.set_id(info->id.raw());
      scenario.base.set_name(info->name);
    }
    FakeMigration migration(scenario);
    migration.run();
    ASSERT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
    migration.expect_sound();
    EXPECT_EQ(migration.source_resumes(), 0);
  }
}

TEST(MigrationSession, PrecopyTakesRoundsUntilTheGuestCalmsDown) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.mode = Mode::kPrecopy;
  scenario.connections = 2;
  scenario.pages_per_step = 200;
  scenario.max_downtime = std::chrono::microseconds(1);  // nothing fits but nothing
  FakeMigration* running = nullptr;
  int rounds = 0;
  scenario.source_step = [&](std::string_view step) -> Status {
    if (step == "round" && ++rounds == 5) fake(running->source()).set_pages_per_step(0);
    return {};
  };
  FakeMigration migration(scenario);
  running = &migration;
  migration.run();
  migration.expect_sound();
  EXPECT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
  EXPECT_EQ(migration.result().rounds(), 6U) << "five that left something, and one for the rest";
  EXPECT_GT(migration.result().pages_sent(), kFakePages) << "the first round is everything";
}

TEST(MigrationSession, SuspendSendsOnlyWhatDiffersFromTheBase) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.pages_per_step = 0;
  FakeMigration migration(scenario);
  for (int page = 100; page < 110; ++page) {
    const std::uint64_t word = 1;
    ASSERT_TRUE(migration.source().machine->memory().write(page * kPageBytes, std::as_bytes(std::span(&word, 1))).ok());
  }
  migration.run();
  migration.expect_sound();
  EXPECT_EQ(migration.result().pages_sent(), 11U) << "ten, and the page that saving the state wrote";
  EXPECT_EQ(migration.destination()->since_base->pending().count(), 11U);
}

TEST(MigrationSession, GuestPausedByItsUserStaysPausedHereAfterAFailure) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.running = false;
  scenario.source_step = [](std::string_view step) -> Status {
    return step == "prepared" ? Status(Error(Errc::kAborted, "at prepared")) : Status{};
  };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_FALSE(migration.source_runs());
  migration.expect_sound();
}

TEST(MigrationSession, GuestPausedByItsUserArrivesPaused) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.running = false;
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
  EXPECT_EQ(migration.runners().most(), 0);
  migration.expect_sound();
}

// Every second page dirty: more hints than a Hello may carry.
TEST(MigrationSession, ScatteredDeltaFitsIntoTheHello) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.pages_per_step = 0;
  FakeMigration migration(scenario);
  for (std::uint64_t page = 0; page < kFakePages; page += 2) {
    const std::uint64_t word = page + 1;
    ASSERT_TRUE(migration.source().machine->memory().write(page * kPageBytes, std::as_bytes(std::span(&word, 1))).ok());
  }
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
  migration.expect_sound();
}

TEST(MigrationSession, GuestThatDirtiesFasterThanTheLinkIsLeftAlone) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.mode = Mode::kPrecopy;
  scenario.pages_per_step = 40;
  scenario.max_downtime = std::chrono::microseconds(1);  // nothing fits
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_GE(migration.result().rounds(), migration::kStalledRoundsMax);
  EXPECT_LE(migration.result().rounds(), migration::kRoundsMax);
  EXPECT_NE(migration.result().error().find("dirties memory faster"), std::string::npos) << migration.result().error();
  EXPECT_EQ(fake(migration.source()).pauses(), 0) << "the guest never noticed";
  migration.expect_sound();
}

TEST(MigrationSession, GuestTooFastIsHeldBackStepByStepWhereThatIsAllowed) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.mode = Mode::kLive;
  scenario.pages_per_step = 40;
  scenario.allow_throttle = true;
  scenario.max_downtime = std::chrono::microseconds(1);  // nothing fits but nothing
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
  EXPECT_EQ(migration.result().throttle_percent(), 99U) << "40 pages a step by hundredths: none are left";
  migration.expect_sound();
}

TEST(MigrationSession, GuestThatStaysIsHeldBackNoLonger) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.mode = Mode::kLive;
  scenario.pages_per_step = 400;  // some pages are left at 99 %
  scenario.allow_throttle = true;
  scenario.max_downtime = std::chrono::microseconds(1);
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_EQ(fake(migration.source()).throttled_most(), 99U);
  EXPECT_EQ(fake(migration.source()).throttled(), 0U);
  EXPECT_EQ(fake(migration.source()).pauses(), 0);
  migration.expect_sound();
}

TEST(MigrationSession, LiveSendsTheDeltaInRoundsAndNotTheTemplate) {
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.mode = Mode::kLive;
  scenario.connections = 3;
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
  EXPECT_GE(migration.result().rounds(), 1U);
  EXPECT_LT(migration.result().pages_sent(), kFakePages / 4);
  migration.expect_sound();
}

TEST(MigrationSession, RecordsCarryTheSessionTheVmAndTheNewToken) {
  Scenario scenario;
  scenario.seed = sim_seed();
  FakeMigration migration(scenario);
  migration.run();
  ASSERT_EQ(migration.state(), SourceState::kDone);
  const auto source = migration.source_disk().history();
  const auto peer = migration.peer_disk().history();
  ASSERT_EQ(source.size(), 2U);
  ASSERT_EQ(peer.size(), 2U);
  for (const auto& record : {source[0], source[1], peer[0], peer[1]}) {
    EXPECT_EQ(record.session(), migration.session().raw());
    EXPECT_EQ(record.vm(), fake_config().id());
    EXPECT_EQ(record.fencing_token(), 2U);
  }
  EXPECT_EQ(source[0].role(), v1::ROLE_LEAVING);
  EXPECT_EQ(source[0].peer(), "peer:7000");
  EXPECT_EQ(source[0].boot_id(), "boot");
  EXPECT_EQ(peer[0].role(), v1::ROLE_MAY_START);
  EXPECT_EQ(peer[0].peer(), "source:7000");
  EXPECT_EQ(peer[0].boot_id(), "peer-boot");
  EXPECT_EQ(source[0].outcome(), v1::OUTCOME_OPEN);
  EXPECT_EQ(source[1].outcome(), v1::OUTCOME_STARTED);
  EXPECT_EQ(peer[0].outcome(), v1::OUTCOME_OPEN);
  EXPECT_EQ(peer[1].outcome(), v1::OUTCOME_STARTED);
}

TEST(MigrationSession, BothRecordsAreDurableBeforeThePause) {
  Scenario scenario;
  scenario.seed = sim_seed();
  FakeMigration* running = nullptr;
  std::optional<v1::SessionOutcome> ours;
  std::optional<v1::SessionOutcome> theirs;
  scenario.source_step = [&](std::string_view step) -> Status {
    if (step != "pause") return {};
    ours = running->source_disk().outcome();
    theirs = running->peer_disk().outcome();
    return {};
  };
  FakeMigration migration(scenario);
  running = &migration;
  migration.run();
  EXPECT_EQ(ours, v1::OUTCOME_OPEN);
  EXPECT_EQ(theirs, v1::OUTCOME_OPEN);
}

}  // namespace
}  // namespace fvmm::testing
