// Disks that fail, machines that fail, links that stall, peers that talk nonsense.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <random>

#include "support/fake_migration.h"

namespace fvmm::testing {
namespace {

using migration::Mode;
using migration::SourceState;

Scenario quick() {
  spdlog::default_logger_raw()->set_level(spdlog::level::off);
  Scenario scenario;
  scenario.seed = sim_seed();
  return scenario;
}

migration::StepHook fail_at(const std::string& wanted) {
  return [wanted](std::string_view step) -> Status {
    if (step == wanted) return Error(Errc::kAborted, "failed at " + wanted);
    return {};
  };
}

TEST(MigrationDisk, SourceThatCannotRecordLeavingDoesNotLeave) {
  Scenario scenario = quick();
  scenario.source_failing_writes = {0};
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_EQ(fake(migration.source()).pauses(), 0);
  EXPECT_FALSE(migration.source_disk().record());
  migration.expect_sound();
}

TEST(MigrationDisk, DestinationThatCannotRecordMayStartIsNeverReady) {
  Scenario scenario = quick();
  scenario.destination_failing_writes = {0};
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_EQ(fake(migration.source()).pauses(), 0);
  EXPECT_FALSE(migration.peer_disk().record());
  EXPECT_NE(migration.result().error().find("the disk is full of holes"), std::string::npos);
  migration.expect_sound();
}

TEST(MigrationDisk, GuestThatMovedStaysMovedWhenTheLastRecordsFail) {
  for (const bool at_source : {true, false}) {
    Scenario scenario = quick();
    (at_source ? scenario.source_failing_writes : scenario.destination_failing_writes) = {1};
    scenario.source_waits.record = scenario.destination_waits.record = std::chrono::milliseconds(0);
    FakeMigration migration(scenario);
    migration.run();
    EXPECT_EQ(migration.state(), SourceState::kDone);
    EXPECT_EQ(at_source ? migration.source_disk().outcome() : migration.peer_disk().outcome(), v1::OUTCOME_OPEN)
        << "the safe side: a restart asks";
    migration.expect_sound();
  }
}

TEST(MigrationDisk, LastRecordIsTriedAgainWhileTheDiskDoesNotTakeIt) {
  for (const bool at_source : {true, false}) {
    Scenario scenario = quick();
    (at_source ? scenario.source_failing_writes : scenario.destination_failing_writes) = {1, 2};
    FakeMigration migration(scenario);
    migration.run();
    EXPECT_EQ(migration.state(), SourceState::kDone);
    EXPECT_EQ(at_source ? migration.source_disk().outcome() : migration.peer_disk().outcome(), v1::OUTCOME_STARTED);
    migration.expect_sound();
  }
}

TEST(MigrationDisk, AbortIsRecordedOnceTheDiskTakesIt) {
  Scenario scenario = quick();
  scenario.source_failing_writes = {1, 2};  // before the guest resumes, and after
  scenario.source_step = fail_at("prepared");
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_EQ(migration.source_disk().outcome(), v1::OUTCOME_ABORTED);
  EXPECT_TRUE(migration.source_runs());
  migration.expect_sound();
}

// Only an end is definite: everything else must not settle a session that is still open.
TEST(MigrationAnswer, WorkerOfTheSourceKnowsOnlyHowItEnded) {
  for (int i = 0; i < migration::kSourceStates; ++i) {
    const auto state = static_cast<SourceState>(i);
    const std::string wanted = state == SourceState::kDone      ? "started"
                               : state == SourceState::kAborted ? "refused"
                                                                : "unknown";
    EXPECT_EQ(migration::answer_of(state).outcome(), wanted) << migration::to_string(state);
  }
}

TEST(MigrationDisk, GuestResumesAlsoWhenItsAbortCannotBeRecorded) {
  Scenario scenario = quick();
  scenario.source_failing_writes = {1, 2};
  scenario.source_waits.record = std::chrono::milliseconds(0);
  scenario.source_step = fail_at("prepared");
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_EQ(migration.source_disk().outcome(), v1::OUTCOME_OPEN);
  EXPECT_TRUE(migration.source_runs());
  migration.expect_sound();
}

TEST(MigrationDisk, RefusalThatIsNotDurableIsNotSpoken) {
  Scenario scenario = quick();
  scenario.destination_failing_writes = {1, 2};  // the refusal, and the next try when the source asks
  scenario.destination_step = fail_at("run");
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kUnknown) << "COMMIT was accepted and nothing durable takes it back";
  EXPECT_EQ(migration.peer_disk().outcome(), v1::OUTCOME_OPEN);
  migration.expect_sound();

  const auto answer = migration.ask();  // the disk works again
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ(answer->outcome(), "refused");
  EXPECT_EQ(migration.peer_disk().outcome(), v1::OUTCOME_REFUSED);
}

TEST(MigrationDisk, RefusalIsTriedAgainWhenTheSourceAsks) {
  Scenario scenario = quick();
  scenario.destination_failing_writes = {1};
  scenario.destination_step = fail_at("run");
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_EQ(migration.peer_disk().outcome(), v1::OUTCOME_REFUSED);
  EXPECT_TRUE(migration.source_runs());
  migration.expect_sound();
}

TEST(MigrationDisk, RefusalThatWasToldIsNotOverwrittenByMayStart) {
  Scenario scenario = quick();
  FakeMigration* running = nullptr;
  scenario.destination_step = [&](std::string_view step) -> Status {
    if (step == "may-start") {
      EXPECT_EQ(running->peer().session()->answer().outcome(), "refused");
    }
    return {};
  };
  FakeMigration migration(scenario);
  running = &migration;
  migration.run();
  migration.expect_sound();
  for (const auto& record : migration.peer_disk().history()) EXPECT_EQ(record.outcome(), v1::OUTCOME_REFUSED);
}

struct FaultCase {
  const char* name;
  bool at_source;
  bool FakeFaults::*fault;
};

TEST(MigrationMachine, EachFailingCallGivesTheGuestBack) {
  const FaultCase cases[] = {{"pause", true, &FakeFaults::pause},
                             {"save", true, &FakeFaults::save},
                             {"load", false, &FakeFaults::load},
                             {"resume", false, &FakeFaults::resume}};
  for (const FaultCase& one : cases) {
    SCOPED_TRACE(one.name);
    Scenario scenario = quick();
    FakeFaults& faults = one.at_source ? scenario.source_faults : scenario.destination_faults;
    faults.*one.fault = true;
    FakeMigration migration(scenario);
    migration.run();
    EXPECT_EQ(migration.state(), SourceState::kAborted);
    EXPECT_TRUE(migration.source_runs());
    migration.expect_sound();
  }
}

TEST(MigrationMachine, FailedStartWhoseRefusalGotLostIsLearntByQuestion) {
  Scenario scenario = quick();
  std::uint64_t before_refusal = 0;
  {
    FakeMigration dry(scenario);
    dry.run();
    before_refusal = dry.peer().backward(0).sent.at(1);  // READY, PREPARED
  }
  scenario.destination_faults.resume = true;
  scenario.link = [&](unsigned number) -> Result<LinkScript> {
    LinkScript script;
    if (number == 0) script.backward.cut_after_bytes = before_refusal + 1;
    return script;
  };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted) << "started would lose the VM: it runs nowhere";
  EXPECT_TRUE(migration.source_runs());
  migration.expect_sound();
}

TEST(MigrationStall, PeerThatNeverSaysReadyCostsTheTimeoutAndNothingElse) {
  Scenario scenario = quick();
  scenario.timeout = std::chrono::milliseconds(100);
  scenario.link = [](unsigned) -> Result<LinkScript> {
    return LinkScript{.forward = {}, .backward = {.stall_after_bytes = 0}};
  };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_EQ(fake(migration.source()).pauses(), 0);
  migration.expect_sound();
}

TEST(MigrationStall, StalledPagesGiveTheGuestBackAtTheDeadline) {
  Scenario scenario = quick();
  scenario.timeout = std::chrono::milliseconds(300);
  scenario.link = [](unsigned number) -> Result<LinkScript> {
    LinkScript script;
    if (number == 1) script.forward.stall_after_bytes = 5000;
    return script;
  };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  migration.expect_sound();
}

// The session object of the destination lives on for questions: its connections must not.
TEST(MigrationStall, DestinationThatFailsUnderWayDoesNotLeaveTheSourceSending) {
  Scenario scenario = quick();
  scenario.mode = Mode::kPrecopy;
  scenario.steps_before = 60;
  scenario.pages_per_step = 60;  // more than the pipe's buffer holds
  scenario.timeout = std::chrono::hours(1);
  scenario.destination_step = fail_at("receive");
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  migration.expect_sound();
}

TEST(MigrationStall, StartedThatDoesNotComeIsAskedFor) {
  Scenario scenario = quick();
  std::uint64_t before_started = 0;
  {
    FakeMigration dry(scenario);
    dry.run();
    before_started = dry.peer().backward(0).sent.at(1);
  }
  scenario.source_waits.answer = std::chrono::seconds(5);
  scenario.link = [&](unsigned number) -> Result<LinkScript> {
    LinkScript script;
    if (number == 0) script.backward.stall_after_bytes = before_started;
    return script;
  };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kDone) << migration.result().error();
  migration.expect_sound();
}

TEST(MigrationPeer, RejectionIsToldWithItsReason) {
  Scenario scenario = quick();
  scenario.intercept = [](net::Stream& stream, const v1::PeerHello&) {
    v1::PeerMessage message;
    message.set_kind(v1::PEER_REJECTED);
    message.set_code(static_cast<std::uint32_t>(Errc::kFailedPrecondition));
    message.set_reason("peer version 2 is not ours, 1");
    (void)net::send_message(stream, net::FrameType::kControl, message, Deadline::after(std::chrono::seconds(5)));
    return true;
  };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_NE(migration.result().error().find("peer version 2"), std::string::npos) << migration.result().error();
  migration.expect_sound();
}

TEST(MigrationPeer, HelloSaysWhoIsMovingAndInWhichVersion) {
  Scenario scenario = quick();
  scenario.mode = Mode::kPrecopy;
  scenario.connections = 3;
  v1::PeerHello seen;
  scenario.intercept = [&](net::Stream&, const v1::PeerHello& hello) {
    seen = hello;
    return true;
  };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(seen.version(), migration::kPeerVersion);
  EXPECT_EQ(seen.purpose(), v1::MIGRATE);
  EXPECT_EQ(seen.session(), migration.session().raw());
  EXPECT_EQ(seen.connections(), 3U);
  EXPECT_EQ(seen.vm().id(), fake_config().id());
  EXPECT_EQ(seen.mode(), "precopy");
  EXPECT_TRUE(seen.template_().id().empty()) << "precopy is a copy of everything";
  EXPECT_EQ(seen.fencing_token(), 2U);
  EXPECT_EQ(seen.timeout_ms(), 20'000U);
  EXPECT_GT(seen.realtime_ns(), 0U);
}

// Whatever a peer says in place of a message that is due, the guest goes on here.
TEST(MigrationPeer, NonsenseInPlaceOfReadyIsRefused) {
  const std::uint64_t seed = sim_seed();
  std::mt19937_64 random(seed);
  for (int round = 0; round < 50; ++round) {
    Scenario scenario = quick();
    std::vector<std::byte> garbage(random() % 200);
    for (std::byte& byte : garbage) byte = static_cast<std::byte>(random());
    scenario.intercept = [&](net::Stream& stream, const v1::PeerHello&) {
      (void)stream.send(garbage, Deadline::after(std::chrono::seconds(5)));
      return true;
    };
    FakeMigration migration(scenario);
    migration.run();
    EXPECT_EQ(migration.state(), SourceState::kAborted);
    migration.expect_sound();
  }
}

TEST(MigrationPeer, EveryOtherMessageInPlaceOfReadyIsRefused) {
  for (int kind = v1::PeerKind_MIN; kind <= v1::PeerKind_MAX; ++kind) {
    if (kind == v1::PEER_READY) continue;
    Scenario scenario = quick();
    scenario.intercept = [&](net::Stream& stream, const v1::PeerHello&) {
      v1::PeerMessage message;
      message.set_kind(static_cast<v1::PeerKind>(kind));
      (void)net::send_message(stream, net::FrameType::kControl, message, Deadline::after(std::chrono::seconds(5)));
      return true;
    };
    FakeMigration migration(scenario);
    migration.run();
    EXPECT_EQ(migration.state(), SourceState::kAborted) << kind;
    migration.expect_sound();
  }
}

TEST(MigrationPeer, UnreachablePeerChangesNothing) {
  Scenario scenario = quick();
  scenario.link = [](unsigned) -> Result<LinkScript> { return Error(Errc::kUnavailable, "Connection refused"); };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  EXPECT_FALSE(migration.source_disk().record()) << "nothing was promised";
  migration.expect_sound();
}

TEST(MigrationPeer, DataConnectionThatCannotBeMadeAborts) {
  Scenario scenario = quick();
  scenario.connections = 3;
  scenario.link = [](unsigned number) -> Result<LinkScript> {
    if (number == 2) return Error(Errc::kUnavailable, "Connection refused");
    return LinkScript{};
  };
  FakeMigration migration(scenario);
  migration.run();
  EXPECT_EQ(migration.state(), SourceState::kAborted);
  migration.expect_sound();
}

}  // namespace
}  // namespace fvmm::testing
