// The disks that both hosts reach go with the right to run: written by one side at a time, whatever fails.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include "support/fake_migration.h"

namespace fvmm::testing {
namespace {

using migration::SourceState;

Scenario quiet() {
  spdlog::default_logger_raw()->set_level(spdlog::level::off);
  Scenario scenario;
  scenario.seed = sim_seed();
  return scenario;
}

TEST(MigrationDisks, GoWithTheGuestInEveryModeAlsoWhenItIsPaused) {
  for (const auto mode : {migration::Mode::kSuspend, migration::Mode::kLive, migration::Mode::kPrecopy}) {
    for (const bool running : {true, false}) {
      Scenario scenario = quiet();
      scenario.mode = mode;
      scenario.running = running;
      FakeMigration migration(scenario);
      migration.run();
      EXPECT_EQ(migration.state(), SourceState::kDone);
      migration.expect_sound();
    }
  }
}

TEST(MigrationDisks, ThatCannotBeFlushedKeepTheGuestWhereItIs) {
  Scenario scenario = quiet();
  scenario.source_faults.flush = true;
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  migration.expect_sound();
}

TEST(MigrationDisks, ThatTheDestinationCannotTakeComeBack) {
  Scenario scenario = quiet();
  scenario.destination_faults.take_disks = true;
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_NE(migration.result().error().find("the disk is in use"), std::string::npos) << migration.result().error();
  migration.expect_sound();
}

TEST(MigrationDisks, ComeBackWhenTheStartFailsAfterTheyWereTaken) {
  Scenario scenario = quiet();
  scenario.destination_faults.resume = true;
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  migration.expect_sound();
}

// Between COMMIT and the start nobody has the disk: a stranger that takes it then stops both, and is not overruled.
TEST(MigrationDisks, ThatAStrangerTookKeepTheGuestPausedAtTheSource) {
  Scenario scenario = quiet();
  const int stranger = 0;
  FakeMigration* running = nullptr;
  scenario.destination_step = [&](std::string_view step) -> Status {
    if (step == "run") {
      EXPECT_TRUE(running->runners().take_disk(&stranger));
    }
    return {};
  };
  FakeMigration migration(scenario);
  running = &migration;
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_FALSE(migration.source_runs());
  EXPECT_FALSE(migration.destination_runs());
  EXPECT_EQ(migration.runners().disk_holder(), &stranger);
  migration.runners().let_go_of_disk(&stranger);
  EXPECT_TRUE(fake(migration.source()).resume().ok()) << "it is whole, and goes on once the disk is free";
}

}  // namespace
}  // namespace fvmm::testing
