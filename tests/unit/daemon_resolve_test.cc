#include <gtest/gtest.h>

#include <functional>

#include "daemon/resolve.h"

namespace fvmm::daemon {
namespace {

constexpr v1::SessionRole kRoles[] = {v1::SESSION_ROLE_NONE, v1::ROLE_LEAVING, v1::ROLE_MAY_START};
constexpr PeerOutcome kPeers[] = {PeerOutcome::kStarted, PeerOutcome::kRefused, PeerOutcome::kUnknown};
constexpr Force kForces[] = {Force::kNone, Force::kStartHere, Force::kDiscard};

void for_all(const std::function<void(const ResolveInput&)>& check) {
  for (const auto role : kRoles) {
    for (const auto peer : kPeers) {
      for (const auto force : kForces) {
        for (const bool alive : {false, true}) {
          SCOPED_TRACE(testing::Message() << "role " << role << " peer " << static_cast<int>(peer) << " force "
                                          << static_cast<int>(force) << " alive " << alive);
          check({role, peer, alive, force});
        }
      }
    }
  }
}

TEST(Resolve, RunsHereOnlyWithTheRightOrByForce) {
  for_all([](const ResolveInput& input) {
    if (resolve(input) != Resolution::kRunHere) return;
    EXPECT_TRUE(input.worker_alive);
    const PeerOutcome right = input.role == v1::ROLE_MAY_START ? PeerOutcome::kStarted : PeerOutcome::kRefused;
    EXPECT_TRUE(input.peer == right || (input.peer == PeerOutcome::kUnknown && input.force == Force::kStartHere));
  });
}

TEST(Resolve, DefiniteWordOfThePeerBeatsEveryForce) {
  for_all([](const ResolveInput& input) {
    if (input.peer == PeerOutcome::kUnknown) return;
    ResolveInput plain = input;
    plain.force = Force::kNone;
    EXPECT_EQ(resolve(input), resolve(plain));
    EXPECT_FALSE(by_force(input));
  });
}

TEST(Resolve, WithoutAnswerAndForceNothingChanges) {
  for_all([](const ResolveInput& input) {
    const bool silent = input.peer == PeerOutcome::kUnknown && input.force == Force::kNone;
    EXPECT_EQ(resolve(input) == Resolution::kStay, silent);
  });
}

// Both sides asking each other, with every fate of their workers: at most one runs the VM.
TEST(Resolve, BothSidesTogetherNeverMakeTwoRunnersWithoutForce) {
  for (const auto peer : kPeers) {
    for (const bool source_alive : {false, true}) {
      for (const bool destination_alive : {false, true}) {
        const auto source = resolve({v1::ROLE_LEAVING, peer, source_alive, Force::kNone});
        const auto destination = resolve({v1::ROLE_MAY_START, peer, destination_alive, Force::kNone});
        EXPECT_FALSE(source == Resolution::kRunHere && destination == Resolution::kRunHere);
      }
    }
  }
}

TEST(Resolve, SourceCases) {
  const auto role = v1::ROLE_LEAVING;
  EXPECT_EQ(resolve({role, PeerOutcome::kStarted, true, Force::kNone}), Resolution::kMoved);
  EXPECT_EQ(resolve({role, PeerOutcome::kStarted, false, Force::kNone}), Resolution::kMoved);
  EXPECT_EQ(resolve({role, PeerOutcome::kRefused, true, Force::kNone}), Resolution::kRunHere);
  EXPECT_EQ(resolve({role, PeerOutcome::kRefused, false, Force::kNone}), Resolution::kLost);
  EXPECT_EQ(resolve({role, PeerOutcome::kUnknown, true, Force::kStartHere}), Resolution::kRunHere);
  EXPECT_EQ(resolve({role, PeerOutcome::kUnknown, false, Force::kStartHere}), Resolution::kNothingToRun);
  EXPECT_EQ(resolve({role, PeerOutcome::kUnknown, true, Force::kDiscard}), Resolution::kMoved);
}

TEST(Resolve, DestinationCases) {
  const auto role = v1::ROLE_MAY_START;
  EXPECT_EQ(resolve({role, PeerOutcome::kStarted, true, Force::kNone}), Resolution::kRunHere);
  EXPECT_EQ(resolve({role, PeerOutcome::kStarted, false, Force::kNone}), Resolution::kLost);
  EXPECT_EQ(resolve({role, PeerOutcome::kRefused, true, Force::kNone}), Resolution::kDropReplica);
  EXPECT_EQ(resolve({role, PeerOutcome::kUnknown, false, Force::kDiscard}), Resolution::kDropReplica);
  EXPECT_EQ(resolve({role, PeerOutcome::kUnknown, false, Force::kStartHere}), Resolution::kNothingToRun);
}

TEST(Resolve, OutcomeStaysOpenExactlyWhileUnsettled) {
  for_all([](const ResolveInput& input) {
    const Resolution resolution = resolve(input);
    const bool open = resolution == Resolution::kStay || resolution == Resolution::kNothingToRun;
    EXPECT_EQ(!outcome_after(resolution, input.role), open);
  });
}

// What one side writes when it settles must be what the other side may then be told.
TEST(Resolve, SettledRecordAnswersWhatWasDecided) {
  for_all([](const ResolveInput& input) {
    const auto outcome = outcome_after(resolve(input), input.role);
    if (!outcome || input.peer == PeerOutcome::kUnknown) return;
    v1::SessionRecord record;
    record.set_role(input.role);
    record.set_outcome(*outcome);
    EXPECT_EQ(parse_outcome(answer_of(record)), input.peer);
  });
}

TEST(SessionAnswer, OpenRecordAnswersUnknownAndAbortedIsARefusal) {
  v1::SessionRecord record;
  record.set_role(v1::ROLE_MAY_START);
  EXPECT_EQ(answer_of(record).outcome(), "unknown");
  record.set_outcome(v1::OUTCOME_ABORTED);
  EXPECT_EQ(answer_of(record).outcome(), "refused");
  v1::SessionAnswer odd;
  odd.set_outcome("sure");
  EXPECT_EQ(parse_outcome(odd), PeerOutcome::kUnknown);
}

}  // namespace
}  // namespace fvmm::daemon
