// Connections cut at every byte of the conversation, with and without a way to ask afterwards.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <random>

#include "support/fake_migration.h"

namespace fvmm::testing {
namespace {

using migration::Mode;
using migration::SourceState;

Scenario quick(std::uint64_t seed) {
  spdlog::default_logger_raw()->set_level(spdlog::level::off);  // thousands of failures, all wanted
  Scenario scenario;
  scenario.seed = seed;
  return scenario;
}

/// Lengths of a conversation in which nothing goes wrong.
struct Conversation {
  Tap control_forward;   // Hello, STATE, COMMIT, SETTLED
  Tap control_backward;  // READY, PREPARED, STARTED
  Tap data_forward;      // Hello, page frames, end
};

Conversation listen(const Scenario& scenario) {
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
  return {migration.peer().forward(0), migration.peer().backward(0), migration.peer().forward(1)};
}

enum class Way { kForward, kBackward };

/// Cuts connection `number` after `bytes` one way. With `for_good` no later connection than the first data one is made.
std::function<Result<LinkScript>(unsigned)> cut(unsigned number, Way way, std::uint64_t bytes, bool for_good = false) {
  return [=](unsigned connecting) -> Result<LinkScript> {
    if (for_good && connecting > 1) return Error(Errc::kUnavailable, "No route to host");
    LinkScript script;
    if (connecting == number) (way == Way::kForward ? script.forward : script.backward).cut_after_bytes = bytes;
    return script;
  };
}

class CutAtEveryByte : public ::testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(Modes, CutAtEveryByte, ::testing::Values(Mode::kSuspend, Mode::kPrecopy, Mode::kLive));

// With a peer that can be asked, every cut ends in exactly one runner.
TEST_P(CutAtEveryByte, OfTheControlConnectionLeavesOneRunner) {
  const std::uint64_t seed = sim_seed();
  Scenario scenario = quick(seed);
  scenario.mode = GetParam();
  const Conversation whole = listen(scenario);
  ASSERT_EQ(whole.control_forward.sent.size(), 4U);
  ASSERT_EQ(whole.control_backward.sent.size(), 3U);
  // Precopy sends everything each time: a few bytes apart is enough there.
  const std::uint64_t stride = GetParam() == Mode::kPrecopy ? 17 : 1;
  for (const Way way : {Way::kForward, Way::kBackward}) {
    const Tap& tap = way == Way::kForward ? whole.control_forward : whole.control_backward;
    for (std::uint64_t bytes = 0; bytes <= tap.sent.back() + 1; bytes += stride) {
      SCOPED_TRACE(::testing::Message() << "cut after " << bytes
                                        << (way == Way::kForward ? " bytes forth" : " bytes back"));
      scenario.link = cut(0, way, bytes);
      FakeMigration migration(scenario);
      migration.run();
      migration.expect_sound();
      ASSERT_EQ(migration.runners().now(), 1);
      ASSERT_NE(migration.state(), SourceState::kUnknown);
      if (way == Way::kForward && bytes < tap.sent[2]) {
        ASSERT_EQ(migration.state(), SourceState::kAborted) << "COMMIT did not arrive whole";
      }
      if (way == Way::kBackward && bytes < tap.sent[1]) {
        ASSERT_EQ(migration.state(), SourceState::kAborted) << "PREPARED did not arrive whole";
      }
    }
  }
}

TEST_P(CutAtEveryByte, OfADataConnectionGivesTheGuestBack) {
  const std::uint64_t seed = sim_seed();
  Scenario scenario = quick(seed);
  scenario.mode = GetParam();
  const Conversation whole = listen(scenario);
  std::mt19937_64 random(seed);
  std::vector<std::uint64_t> offsets;
  for (const std::uint64_t boundary : whole.data_forward.sent) {  // every frame's end, and a byte on either side
    for (const std::uint64_t at : {boundary - 1, boundary, boundary + 1}) offsets.push_back(at);
  }
  for (int i = 0; i < 60; ++i) offsets.push_back(random() % whole.data_forward.sent.back());
  for (const std::uint64_t bytes : offsets) {
    SCOPED_TRACE(::testing::Message() << "cut after " << bytes << " of " << whole.data_forward.sent.back());
    scenario.link = cut(1, Way::kForward, bytes);
    FakeMigration migration(scenario);
    migration.run();
    migration.expect_sound();
    ASSERT_EQ(migration.runners().now(), 1);
    if (bytes < whole.data_forward.sent.front()) {
      EXPECT_EQ(migration.state(), SourceState::kAborted);
    }
  }
}

// Nobody to ask: from COMMIT on the source cannot know. It stays frozen, and a later question settles it.
TEST_P(CutAtEveryByte, ForGoodLeavesTheGuestFrozenUntilAQuestionSettlesIt) {
  const std::uint64_t seed = sim_seed();
  Scenario scenario = quick(seed);
  scenario.mode = GetParam();
  const Conversation whole = listen(scenario);
  scenario.source_waits.asking = std::chrono::milliseconds(5);
  int unknown = 0;
  int started = 0;
  const auto run = [&](Way way, std::uint64_t bytes) {
    SCOPED_TRACE(::testing::Message() << "cut after " << bytes
                                      << (way == Way::kForward ? " bytes forth" : " bytes back"));
    scenario.link = cut(0, way, bytes, true);
    FakeMigration migration(scenario);
    migration.run();
    migration.expect_sound();
    EXPECT_LE(migration.runners().most(), 1);
    if (migration.state() != SourceState::kUnknown) return;
    ++unknown;
    EXPECT_EQ(migration.source_resumes(), 0);
    migration.peer().heal();
    const auto answer = migration.ask();
    ASSERT_TRUE(answer.ok()) << answer.error().message();
    EXPECT_EQ(answer->outcome(), migration.destination_runs() ? "started" : "refused");
    if (migration.destination_runs()) {
      ++started;
      EXPECT_EQ(migration.peer_disk().outcome(), v1::OUTCOME_STARTED);
      migration.expect_same_guest();
    } else {
      EXPECT_EQ(migration.peer_disk().outcome(), v1::OUTCOME_REFUSED);
    }
  };
  const std::uint64_t stride = GetParam() == Mode::kPrecopy ? 7 : 1;
  for (std::uint64_t at = whole.control_forward.sent[1]; at <= whole.control_forward.sent[2] + 1; at += stride) {
    run(Way::kForward, at);
  }
  for (std::uint64_t at = whole.control_backward.sent[1]; at <= whole.control_backward.sent[2] + 1; at += stride) {
    run(Way::kBackward, at);
  }
  EXPECT_GT(unknown, 0);
  EXPECT_GT(started, 0) << "some of the cuts come after COMMIT arrived";
  EXPECT_LT(started, unknown) << "and some before";
}

// Everything at once, drawn from the seed: cuts, stalls of nothing, full disks, failing machines and steps.
TEST(MigrationChaos, AnyMixtureOfFailuresIsSound) {
  const std::uint64_t seed = sim_seed();
  const std::vector<std::string> source_steps = {"ready", "data",     "round",      "pause",
                                                 "state", "prepared", "committing", "started"};
  const std::vector<std::string> destination_steps = {"prepare",  "ready",  "receive", "load",
                                                      "prepared", "commit", "run"};
  int moved = 0;
  for (std::uint64_t round = 0; round < 400; ++round) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed << " round " << round);
    std::mt19937_64 random(seed + round);
    const auto chance = [&random](unsigned in) { return random() % in == 0; };
    Scenario scenario = quick(random());
    scenario.mode = chance(4) ? Mode::kPrecopy : Mode::kSuspend;
    scenario.connections = 1 + static_cast<unsigned>(random() % 4);
    scenario.steps_before = static_cast<unsigned>(random() % 8);
    scenario.source_waits.asking = std::chrono::milliseconds(20);
    scenario.destination_waits.connections = std::chrono::milliseconds(100);
    scenario.destination_waits.start = std::chrono::seconds(1);
    const auto cut_connection = static_cast<unsigned>(random() % 6);
    const std::uint64_t cut_bytes = random() % (cut_connection == 0 ? 700 : 300'000);
    const bool forth = chance(2);
    const unsigned unreachable_from = chance(3) ? 1 + static_cast<unsigned>(random() % 8) : 100U;
    if (chance(2)) {
      scenario.link = [=](unsigned number) -> Result<LinkScript> {
        if (number >= unreachable_from) return Error(Errc::kUnavailable, "No route to host");
        LinkScript script;
        if (number == cut_connection) (forth ? script.forward : script.backward).cut_after_bytes = cut_bytes;
        return script;
      };
    }
    if (chance(6)) scenario.source_failing_writes.insert(static_cast<int>(random() % 2));
    if (chance(4)) scenario.destination_failing_writes.insert(static_cast<int>(random() % 3));
    if (chance(8)) scenario.destination_faults.load = true;
    if (chance(6)) scenario.destination_faults.resume = true;
    const auto failing = [&](const std::vector<std::string>& steps) -> migration::StepHook {
      if (!chance(5)) return {};
      return [wanted = steps[random() % steps.size()]](std::string_view step) -> Status {
        if (step == wanted) return Error(Errc::kInternal, "failed at " + wanted);
        return {};
      };
    };
    scenario.source_step = failing(source_steps);
    scenario.destination_step = failing(destination_steps);
    FakeMigration migration(scenario);
    migration.run();
    migration.expect_sound();
    if (migration.state() == SourceState::kDone) ++moved;
    if (migration.state() != SourceState::kUnknown) {
      EXPECT_EQ(migration.runners().now(), 1);
      continue;
    }
    migration.peer().heal();
    const auto answer = migration.ask();
    ASSERT_TRUE(answer.ok()) << answer.error().message();
    EXPECT_EQ(answer->outcome() == "started", migration.destination_runs());
  }
  EXPECT_GT(moved, 20) << "the mixture shall not be all failures";
}

}  // namespace
}  // namespace fvmm::testing
