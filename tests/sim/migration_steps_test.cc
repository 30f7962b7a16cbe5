// A migration that fails, is killed or is cancelled at each step that either side announces.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <future>

#include "support/fake_migration.h"

namespace fvmm::testing {
namespace {

using migration::Mode;
using migration::SourceState;

Scenario quick(Mode mode, std::uint64_t seed) {
  spdlog::default_logger_raw()->set_level(spdlog::level::off);  // hundreds of failures, all wanted
  Scenario scenario;
  scenario.seed = seed;
  scenario.mode = mode;
  scenario.connections = 2;
  return scenario;
}

std::vector<std::string> unique(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  return names;
}

struct Steps {
  std::vector<std::string> source;
  std::vector<std::string> destination;
};

/// What both sides announce when nothing goes wrong.
Steps dry_run(Mode mode) {
  FakeMigration migration(quick(mode, 1));
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
  return {unique(migration.source_steps()), unique(migration.destination_steps())};
}

migration::StepHook fail_at(const std::string& wanted) {
  return [wanted](std::string_view step) -> Status {
    if (step == wanted) return Error(Errc::kAborted, "failed at " + wanted);
    return {};
  };
}

migration::StepHook kill_at(const std::string& wanted) {
  return [wanted](std::string_view step) -> Status {
    if (step == wanted) throw Killed{};
    return {};
  };
}

class AtEachStep : public ::testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, AtEachStep, ::testing::Values(Mode::kSuspend, Mode::kPrecopy, Mode::kLive));

TEST_P(AtEachStep, BothSidesAnnounceEveryStepOfTheTransaction) {
  const Steps steps = dry_run(GetParam());
  for (const char* name : {"connect", "hello", "leaving", "ready", "data", "converged", "pause", "save", "harvest",
                           "pages", "state", "prepared", "commit", "committing", "started"}) {
    EXPECT_EQ(std::count(steps.source.begin(), steps.source.end(), name), 1) << name;
  }
  for (const char* name :
       {"prepare", "may-start", "ready", "receive", "state", "load", "prepared", "commit", "run", "started"}) {
    EXPECT_EQ(std::count(steps.destination.begin(), steps.destination.end(), name), 1) << name;
  }
}

TEST_P(AtEachStep, SourceFailureLeavesOneRunner) {
  const std::uint64_t seed = sim_seed();
  for (const std::string& step : dry_run(GetParam()).source) {
    SCOPED_TRACE("source fails at " + step);
    Scenario scenario = quick(GetParam(), seed);
    scenario.source_step = fail_at(step);
    FakeMigration migration(scenario);
    migration.run();
    migration.expect_sound();
    EXPECT_EQ(migration.runners().now(), 1);
    if (step != "started") {  // there COMMIT is on its way: whoever is first, it or the question, decides
      EXPECT_EQ(migration.state(), SourceState::kAborted);
    }
  }
}

TEST_P(AtEachStep, DestinationFailureLeavesOneRunner) {
  const std::uint64_t seed = sim_seed();
  for (const std::string& step : dry_run(GetParam()).destination) {
    SCOPED_TRACE("destination fails at " + step);
    Scenario scenario = quick(GetParam(), seed);
    scenario.destination_step = fail_at(step);
    FakeMigration migration(scenario);
    migration.run();
    migration.expect_sound();
    EXPECT_EQ(migration.runners().now(), 1);
    EXPECT_EQ(migration.state(), step == "started" ? SourceState::kDone : SourceState::kAborted)
        << "once the guest runs nothing fails it any more";
  }
}

// The source's worker dies: its memory is gone, its record tells the next fvmmd whom to ask.
TEST_P(AtEachStep, KilledSourceNeverLeavesARecordThatLetsTwoRun) {
  const std::uint64_t seed = sim_seed();
  for (const std::string& step : dry_run(GetParam()).source) {
    SCOPED_TRACE("source killed at " + step);
    Scenario scenario = quick(GetParam(), seed);
    scenario.source_step = kill_at(step);
    FakeMigration migration(scenario);
    migration.run();
    ASSERT_TRUE(migration.source_killed());
    EXPECT_LE(migration.runners().most(), 1);
    const bool runs = migration.destination_runs();
    const auto ours = migration.source_disk().outcome();
    const auto theirs = migration.peer_disk().outcome();
    EXPECT_EQ(runs, theirs == v1::OUTCOME_STARTED);
    if (runs) {
      EXPECT_EQ(ours, v1::OUTCOME_OPEN) << "a restarted source must ask before it starts anything";
    }
    if (!runs && theirs) {
      EXPECT_EQ(theirs, v1::OUTCOME_REFUSED);
    }
    if (theirs) {
      const auto answer = migration.ask();
      ASSERT_TRUE(answer.ok());
      EXPECT_EQ(answer->outcome(), runs ? "started" : "refused");
    }
  }
}

// The destination's worker dies: the source takes the guest back before COMMIT, and after it only with a settled
// record.
TEST_P(AtEachStep, KilledDestinationGivesTheGuestBackOnlyBeforeCommit) {
  const std::uint64_t seed = sim_seed();
  for (const std::string& step : dry_run(GetParam()).destination) {
    SCOPED_TRACE("destination killed at " + step);
    Scenario scenario = quick(GetParam(), seed);
    scenario.destination_step = kill_at(step);
    FakeMigration migration(scenario);
    migration.run();
    EXPECT_LE(migration.runners().most(), 1);
    EXPECT_FALSE(migration.destination_runs()) << "its memory died with it";
    const bool after_commit = step == "commit" || step == "run" || step == "started";
    EXPECT_EQ(migration.state(), after_commit ? SourceState::kUnknown : SourceState::kAborted);
    EXPECT_EQ(migration.source_runs(), !after_commit);
    EXPECT_EQ(migration.source_disk().outcome(), after_commit ? v1::OUTCOME_OPEN : v1::OUTCOME_ABORTED);
    EXPECT_NE(migration.peer_disk().outcome(), v1::OUTCOME_STARTED);
    if (after_commit) {
      const auto answer = migration.ask();
      ASSERT_TRUE(answer.ok());
      EXPECT_EQ(answer->outcome(), "unknown") << "COMMIT was there: nobody can say what the dead worker did";
    }
  }
}

TEST_P(AtEachStep, CancelAtTheSourceEndsItBeforeCommitAndNeverAfter) {
  const std::uint64_t seed = sim_seed();
  for (const std::string& wanted : dry_run(GetParam()).source) {
    SCOPED_TRACE("cancelled at " + wanted);
    Scenario scenario = quick(GetParam(), seed);
    migration::SourceSession* session = nullptr;
    scenario.on_session = [&](migration::SourceSession& started) { session = &started; };
    scenario.source_step = [&](std::string_view step) -> Status {
      if (step == wanted) std::async(std::launch::async, [&] { session->cancel(); }).get();
      return {};
    };
    FakeMigration migration(scenario);
    migration.run();
    migration.expect_sound();
    const bool too_late = wanted == "committing" || wanted == "started";
    EXPECT_EQ(migration.state(), too_late ? SourceState::kDone : SourceState::kAborted);
  }
}

TEST_P(AtEachStep, CancelAtTheDestinationEndsItBeforeCommitAndNeverAfter) {
  const std::uint64_t seed = sim_seed();
  for (const std::string& wanted : dry_run(GetParam()).destination) {
    SCOPED_TRACE("cancelled at " + wanted);
    Scenario scenario = quick(GetParam(), seed);
    FakeMigration* running = nullptr;
    scenario.destination_step = [&](std::string_view step) -> Status {
      if (step == wanted) std::async(std::launch::async, [&] { running->peer().session()->cancel(); }).get();
      return {};
    };
    FakeMigration migration(scenario);
    running = &migration;
    migration.run();
    migration.expect_sound();
    const bool too_late = wanted == "commit" || wanted == "run" || wanted == "started";
    EXPECT_EQ(migration.state(), too_late ? SourceState::kDone : SourceState::kAborted);
  }
}

// A question may come at any time, from a source that has lost its memory of the session as well as from a living one.
TEST_P(AtEachStep, QuestionAtAnyStepIsAnsweredAsItThenEnds) {
  const std::uint64_t seed = sim_seed();
  for (const std::string& wanted : dry_run(GetParam()).destination) {
    SCOPED_TRACE("asked at " + wanted);
    Scenario scenario = quick(GetParam(), seed);
    scenario.destination_waits.start = std::chrono::milliseconds(20);
    FakeMigration* running = nullptr;
    std::string answered;
    scenario.destination_step = [&](std::string_view step) -> Status {
      if (step == wanted) {
        answered = std::async(std::launch::async, [&] { return running->peer().session()->answer(); }).get().outcome();
      }
      return {};
    };
    FakeMigration migration(scenario);
    running = &migration;
    migration.run();
    migration.expect_sound();
    EXPECT_EQ(answered, wanted == "started" ? "started" : wanted == "run" ? "unknown" : "refused");
    EXPECT_EQ(migration.state(), answered == "refused" ? SourceState::kAborted : SourceState::kDone);
  }
}

}  // namespace
}  // namespace fvmm::testing
