// The transaction as pure functions: every state crossed with every event, and both sides together with every way in
// which messages get lost.
#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <set>
#include <thread>
#include <tuple>
#include <vector>

#include "migration/destination_state.h"
#include "migration/source_state.h"

namespace fvmm::migration {
namespace {

std::vector<SourceState> source_states() {
  std::vector<SourceState> all;
  for (int i = 0; i < kSourceStates; ++i) all.push_back(static_cast<SourceState>(i));
  return all;
}
std::vector<SourceEvent> source_events() {
  std::vector<SourceEvent> all;
  for (int i = 0; i < kSourceEvents; ++i) all.push_back(static_cast<SourceEvent>(i));
  return all;
}
std::vector<DestinationState> destination_states() {
  std::vector<DestinationState> all;
  for (int i = 0; i < kDestinationStates; ++i) all.push_back(static_cast<DestinationState>(i));
  return all;
}
std::vector<DestinationEvent> destination_events() {
  std::vector<DestinationEvent> all;
  for (int i = 0; i < kDestinationEvents; ++i) all.push_back(static_cast<DestinationEvent>(i));
  return all;
}

TEST(SourceState, OnlyDurableRefusalRestoresTheRightToRun) {
  for (const SourceState from : source_states()) {
    for (const SourceEvent event : source_events()) {
      const auto to = next(from, event);
      if (!to || may_run_here(from) || event == SourceEvent::kRefusedDurably) continue;
      EXPECT_FALSE(may_run_here(*to)) << to_string(from) << " event " << static_cast<int>(event);
    }
  }
}

TEST(SourceState, OnlyPreparedTakesTheRightToRunAway) {
  for (const SourceState from : source_states()) {
    for (const SourceEvent event : source_events()) {
      const auto to = next(from, event);
      if (!to || !may_run_here(from) || may_run_here(*to)) continue;
      EXPECT_EQ(from, SourceState::kStopAndCopy);
      EXPECT_EQ(event, SourceEvent::kPeerPrepared);
    }
  }
}

TEST(SourceState, EndsAreFinalAndEverythingElseCanFail) {
  for (const SourceState from : source_states()) {
    const bool final = from == SourceState::kDone || from == SourceState::kAborted;
    EXPECT_EQ(next(from, SourceEvent::kFailed).has_value(), !final) << to_string(from);
    for (const SourceEvent event : source_events()) {
      if (final) {
        EXPECT_FALSE(next(from, event)) << to_string(from);
      }
    }
  }
}

TEST(SourceState, FailureAfterCommitIsUnknownAndAnAnswerEndsIt) {
  EXPECT_EQ(next(SourceState::kCommitting, SourceEvent::kFailed), SourceState::kUnknown);
  EXPECT_EQ(next(SourceState::kUnknown, SourceEvent::kFailed), SourceState::kUnknown);
  EXPECT_EQ(next(SourceState::kUnknown, SourceEvent::kStarted), SourceState::kDone);
  EXPECT_EQ(next(SourceState::kUnknown, SourceEvent::kRefusedDurably), SourceState::kAborted);
}

TEST(SourceState, StartedCountsOnlyAfterCommit) {
  for (const SourceState from : source_states()) {
    const bool committed = from == SourceState::kCommitting || from == SourceState::kUnknown;
    EXPECT_EQ(next(from, SourceEvent::kStarted).has_value(), committed) << to_string(from);
  }
}

TEST(SourceState, EachHasAName) {
  std::set<std::string_view> names;
  for (const SourceState state : source_states()) names.insert(to_string(state));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kSourceStates));
  EXPECT_FALSE(names.contains("invalid"));
}

TEST(DestinationState, OnlyCommitGivesTheRightToRun) {
  for (const DestinationState from : destination_states()) {
    for (const DestinationEvent event : destination_events()) {
      const auto to = next(from, event);
      if (!to || may_run_here(from) || !may_run_here(*to)) continue;
      EXPECT_EQ(from, DestinationState::kPrepared);
      EXPECT_EQ(event, DestinationEvent::kCommit);
    }
  }
}

TEST(DestinationState, RefusedStartedAndGoneAreFinal) {
  for (const DestinationState from :
       {DestinationState::kRefused, DestinationState::kStarted, DestinationState::kGone}) {
    for (const DestinationEvent event : destination_events()) EXPECT_FALSE(next(from, event));
  }
}

TEST(DestinationState, FailureAfterReadyIsARefusal) {
  EXPECT_EQ(next(DestinationState::kPreparing, DestinationEvent::kFailed), DestinationState::kGone);
  for (const DestinationState from :
       {DestinationState::kReceiving, DestinationState::kPrepared, DestinationState::kStarting}) {
    EXPECT_EQ(next(from, DestinationEvent::kFailed), DestinationState::kRefused);
  }
}

TEST(DestinationState, EachEventIsTakenInExactlyOneStateExceptFailure) {
  for (const DestinationEvent event : destination_events()) {
    int takers = 0;
    for (const DestinationState from : destination_states()) takers += next(from, event).has_value() ? 1 : 0;
    EXPECT_EQ(takers, event == DestinationEvent::kFailed ? 4 : 1);
  }
}

// ---- Both sides at once -------------------------------------------------------------------------------------------

enum Message : unsigned { kReady = 1, kPrepared = 2, kCommit = 4, kStarted = 8, kRefused = 16 };
constexpr std::array kMessages = {kReady, kPrepared, kCommit, kStarted, kRefused};

/// Both sides, the messages on their way, and the verdict for which COMMIT and questions race.
struct World {
  SourceState source = SourceState::kConnecting;
  DestinationState destination = DestinationState::kPreparing;
  unsigned travelling = 0;  // Message bits
  Verdict::Value verdict = Verdict::Value::kOpen;
  auto key() const { return std::tuple(source, destination, travelling, verdict); }
  bool operator<(const World& other) const { return key() < other.key(); }
};

void apply(std::vector<World>& out, const World& world, SourceEvent event, unsigned sends = 0) {
  const auto to = next(world.source, event);
  if (!to) return;
  World after = world;
  after.source = *to;
  after.travelling |= sends;
  out.push_back(after);
}

void apply(std::vector<World>& out, const World& world, DestinationEvent event, unsigned sends) {
  const auto to = next(world.destination, event);
  if (!to) return;
  World after = world;
  after.destination = *to;
  after.travelling |= sends;
  if (event == DestinationEvent::kCommit) {
    if (world.verdict == Verdict::Value::kRefused) return;  // a question came first
    after.verdict = Verdict::Value::kCommitted;
  }
  if (event == DestinationEvent::kFailed && world.verdict == Verdict::Value::kOpen)
    after.verdict = Verdict::Value::kRefused;
  out.push_back(after);
}

/// A question of the source, answered as DestinationSession::answer() does.
void ask(std::vector<World>& out, const World& world) {
  if (world.source != SourceState::kCommitting && world.source != SourceState::kUnknown) return;
  World after = world;
  if (world.verdict != Verdict::Value::kCommitted) {
    after.verdict = Verdict::Value::kRefused;
    return apply(out, after, SourceEvent::kRefusedDurably);
  }
  if (world.destination == DestinationState::kStarted) return apply(out, after, SourceEvent::kStarted);
  if (world.destination == DestinationState::kRefused) return apply(out, after, SourceEvent::kRefusedDurably);
}

std::vector<World> successors(const World& world) {
  std::vector<World> out;
  for (const Message message : kMessages) {  // each may get lost, and none is used up by its arrival
    if ((world.travelling & message) == 0) continue;
    World lost = world;
    lost.travelling &= ~static_cast<unsigned>(message);
    out.push_back(lost);
  }
  const auto arrives = [&](Message message) { return (world.travelling & message) != 0; };
  if (arrives(kReady)) apply(out, world, SourceEvent::kHelloOk);
  apply(out, world, SourceEvent::kConverged);
  if (arrives(kPrepared)) apply(out, world, SourceEvent::kPeerPrepared, kCommit);
  if (arrives(kStarted)) apply(out, world, SourceEvent::kStarted);
  if (arrives(kRefused)) apply(out, world, SourceEvent::kRefusedDurably);
  apply(out, world, SourceEvent::kFailed);
  ask(out, world);
  apply(out, world, DestinationEvent::kReady, kReady);
  apply(out, world, DestinationEvent::kAllLoaded, kPrepared);
  if (arrives(kCommit)) apply(out, world, DestinationEvent::kCommit, 0);
  apply(out, world, DestinationEvent::kRunning, kStarted);
  apply(out, world, DestinationEvent::kFailed, world.destination == DestinationState::kPreparing ? 0U : kRefused);
  return out;
}

std::set<World> reachable() {
  std::set<World> seen = {World{}};
  std::deque<World> open = {World{}};
  while (!open.empty()) {
    const World world = open.front();
    open.pop_front();
    for (const World& after : successors(world)) {
      if (seen.insert(after).second) open.push_back(after);
    }
  }
  return seen;
}

TEST(Handover, NeverGivesBothSidesTheRightToRun) {
  const std::set<World> worlds = reachable();
  ASSERT_GT(worlds.size(), 100U) << "the exploration went somewhere";
  for (const World& world : worlds) {
    EXPECT_FALSE(may_run_here(world.source) && may_run_here(world.destination))
        << to_string(world.source) << " and destination " << static_cast<int>(world.destination);
  }
}

TEST(Handover, NeverLosesTheGuest) {
  for (const World& world : reachable()) {
    if (world.source == SourceState::kDone) {
      EXPECT_EQ(world.destination, DestinationState::kStarted);
    }
    if (world.destination == DestinationState::kRefused || world.destination == DestinationState::kGone) {
      EXPECT_NE(world.source, SourceState::kDone);
    }
  }
}

TEST(Handover, AQuestionSettlesEveryUnknownWhoseDestinationHasEnded) {
  int settled = 0;
  for (const World& world : reachable()) {
    const bool ended =
        world.destination == DestinationState::kStarted || world.destination == DestinationState::kRefused;
    if (world.source != SourceState::kUnknown || !ended) continue;
    std::vector<World> after;
    ask(after, world);
    ASSERT_EQ(after.size(), 1U);
    EXPECT_NE(may_run_here(after[0].source), may_run_here(after[0].destination)) << "exactly one";
    ++settled;
  }
  EXPECT_GT(settled, 0);
}

TEST(Handover, BothEndsAreReachable) {
  bool moved = false;
  bool refused_after_commit = false;
  for (const World& world : reachable()) {
    moved |= world.source == SourceState::kDone && world.destination == DestinationState::kStarted;
    refused_after_commit |= world.source == SourceState::kAborted && world.verdict == Verdict::Value::kCommitted;
  }
  EXPECT_TRUE(moved);
  EXPECT_TRUE(refused_after_commit) << "a start that failed";
}

TEST(Verdict, FirstDecisionStands) {
  Verdict committed;
  EXPECT_TRUE(committed.commit());
  EXPECT_FALSE(committed.refuse());
  EXPECT_TRUE(committed.commit());
  EXPECT_EQ(committed.value(), Verdict::Value::kCommitted);
  Verdict refused;
  EXPECT_TRUE(refused.refuse());
  EXPECT_FALSE(refused.commit());
  EXPECT_TRUE(refused.refuse());
  EXPECT_EQ(refused.value(), Verdict::Value::kRefused);
}

TEST(Verdict, ExactlyOneOfTwoThreadsWins) {
  for (int round = 0; round < 500; ++round) {
    Verdict verdict;
    bool committed = false;
    bool refused = false;
    std::thread commits([&] { committed = verdict.commit(); });
    std::thread refuses([&] { refused = verdict.refuse(); });
    commits.join();
    refuses.join();
    ASSERT_NE(committed, refused);
    ASSERT_EQ(verdict.value(), committed ? Verdict::Value::kCommitted : Verdict::Value::kRefused);
  }
}

}  // namespace
}  // namespace fvmm::migration
