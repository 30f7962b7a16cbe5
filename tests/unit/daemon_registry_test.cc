#include <gtest/gtest.h>

#include <thread>

#include "base/file.h"
#include "daemon/registry.h"
#include "support/daemon_fakes.h"

namespace fvmm::daemon {
namespace {

using test::session_record;
using test::vm_record;

class RegistryTest : public testing::Test {
 protected:
  void SetUp() override {
    ledger_ = *SessionLedger::open(scratch_.path() / "sessions", 100);
    reopen();
  }
  /// As after kill -9 and a restart of fvmmd.
  void reopen() {
    auto opened = Registry::open(scratch_.path(), *ledger_);
    ASSERT_TRUE(opened) << opened.error().message();
    registry_ = std::move(*opened);
  }
  Claim add(const v1::VmRecord& record) {
    auto claims = registry_->reserve({record}, "create");
    EXPECT_TRUE(claims);
    EXPECT_TRUE(claims->front().change([](v1::VmRecord&) {}));
    return std::move(claims->front());
  }
  /// A process that lives as long as the test.
  std::shared_ptr<WorkerProcess> worker() {
    return *WorkerProcess::of(child_.pid(), scratch_.path() / "w.sock", Shape{64 * kMiB, 1});
  }
  [[nodiscard]] std::filesystem::path directory_of(const v1::VmRecord& record) const {
    return scratch_.path() / "vms" / Id::from_bytes(record.config().id())->hex();
  }

  test::ScratchDirectory scratch_;
  const test::SleepingChild child_;
  std::unique_ptr<SessionLedger> ledger_;
  std::unique_ptr<Registry> registry_;
};

TEST_F(RegistryTest, SavedVmsSurviveARestartSortedByName) {
  add(vm_record("web2", v1::VM_CREATED));
  add(vm_record("web1", v1::VM_STOPPED));
  reopen();
  const auto vms = registry_->list();
  ASSERT_EQ(vms.size(), 2U);
  EXPECT_EQ(vms[0].record.config().name(), "web1");
  EXPECT_EQ(vms[0].record.state(), v1::VM_STOPPED);
  EXPECT_EQ(vms[1].record.config().name(), "web2");
}

TEST_F(RegistryTest, ReservedButNeverSavedVmVanishesWithItsClaim) {
  const auto record = vm_record("web1", v1::VM_CREATED);
  {
    auto claims = registry_->reserve({record}, "create");
    ASSERT_TRUE(claims);
    ASSERT_TRUE(claims->front().make_directory());
    EXPECT_TRUE(registry_->find("web1"));
  }
  EXPECT_FALSE(registry_->find("web1"));
  EXPECT_FALSE(std::filesystem::exists(directory_of(record)));
}

TEST_F(RegistryTest, ReservesAllOrNothing) {
  add(vm_record("b", v1::VM_CREATED));
  const auto taken = registry_->reserve({vm_record("a", v1::VM_CREATED), vm_record("b", v1::VM_CREATED)}, "clone");
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code(), Errc::kAlreadyExists);
  EXPECT_NE(taken.error().message().find("named b"), std::string::npos);
  EXPECT_FALSE(registry_->find("a"));
}

TEST_F(RegistryTest, SecondCommandOnOneVmIsToldWhatIsUnderWay) {
  add(vm_record("web1", v1::VM_CREATED));
  {
    const auto first = registry_->claim("web1", "template create t1");
    ASSERT_TRUE(first);
    const auto second = registry_->claim("web1", "stop");
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code(), Errc::kFailedPrecondition);
    EXPECT_NE(second.error().message().find("template create t1 is under way"), std::string::npos);
  }
  EXPECT_TRUE(registry_->claim("web1", "stop"));
  EXPECT_EQ(registry_->claim("web2", "stop").error().code(), Errc::kNotFound);
}

TEST_F(RegistryTest, UnsettledVmIsClaimedOnlyToResolveIt) {
  add(vm_record("web1", v1::VM_UNSETTLED));
  const auto refused = registry_->claim("web1", "start");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(refused.error().message().find("migrate resolve"), std::string::npos);
  EXPECT_TRUE(registry_->claim("web1", "migrate resolve", Registry::Allow::kUnsettled));
}

TEST_F(RegistryTest, VmInTransitTakesNoCommand) {
  add(vm_record("in", v1::VM_INCOMING));
  EXPECT_EQ(registry_->claim("in", "stop").error().code(), Errc::kFailedPrecondition);
}

TEST_F(RegistryTest, CommandWaitsForFvmmdsOwnShortClaim) {
  const auto record = vm_record("web1", v1::VM_RUNNING);
  const auto process = worker();
  add(record).attach(process, v1::WorkerInfo(), 0);
  auto internal = registry_->claim_for(*Id::from_bytes(record.config().id()), *process);
  ASSERT_TRUE(internal);
  std::thread command([&] { EXPECT_TRUE(registry_->claim("web1", "pause")); });
  internal.reset();
  command.join();
}

TEST_F(RegistryTest, WatchOfAWorkerTheVmHasLeftGetsNoClaim) {
  const auto record = vm_record("web1", v1::VM_RUNNING);
  const Id id = *Id::from_bytes(record.config().id());
  const auto process = worker();
  Claim claim = add(record);
  claim.attach(process, v1::WorkerInfo(), 0);
  EXPECT_TRUE(registry_->note(id, *process, v1::WorkerInfo()));
  std::thread watch([&] { EXPECT_FALSE(registry_->claim_for(id, *process)); });
  claim.detach();
  watch.join();
  EXPECT_FALSE(registry_->note(id, *process, v1::WorkerInfo()));
}

TEST_F(RegistryTest, VmThatIsShownAsMovedIsShownWithItsPlace) {
  const auto record = vm_record("web1", v1::VM_RUNNING);
  const Id id = *Id::from_bytes(record.config().id());
  const auto process = worker();
  Claim claim = add(record);
  claim.attach(process, v1::WorkerInfo(), 0);
  v1::WorkerInfo info;
  info.set_state(v1::VM_MOVED);
  info.set_moved_to("10.0.0.2:7444");
  ASSERT_TRUE(registry_->note(id, *process, info));
  // The worker's word stands before anybody has written it down.
  const v1::VmInfo shown = to_info(*registry_->find(id));
  EXPECT_EQ(shown.state(), v1::VM_MOVED);
  EXPECT_EQ(shown.moved_to(), "10.0.0.2:7444");
  ASSERT_TRUE(claim.change([](v1::VmRecord& known) { known.set_state(v1::VM_UNSETTLED); }));
  EXPECT_EQ(to_info(*registry_->find(id)).moved_to(), "") << "then the record has the last word, in both";
}

TEST_F(RegistryTest, RemovedVmLeavesNothingButItsSettledSession) {
  const auto record = vm_record("web1", v1::VM_STOPPED);
  const auto session = session_record(record, v1::ROLE_MAY_START, v1::OUTCOME_STARTED);
  {
    Claim claim = add(record);
    ASSERT_TRUE(write_session(directory_of(record), session));
    ASSERT_TRUE(claim.remove());
  }
  EXPECT_FALSE(registry_->find("web1"));
  EXPECT_FALSE(std::filesystem::exists(directory_of(record)));
  const auto kept = ledger_->find(*Id::from_bytes(session.session()));
  ASSERT_TRUE(kept && *kept);
  EXPECT_EQ((*kept)->outcome(), v1::OUTCOME_STARTED);
}

TEST_F(RegistryTest, OpenSessionForbidsRemoval) {
  const auto record = vm_record("web1", v1::VM_STOPPED);
  Claim claim = add(record);
  ASSERT_TRUE(write_session(directory_of(record), session_record(record, v1::ROLE_LEAVING, v1::OUTCOME_OPEN)));
  EXPECT_EQ(claim.remove().error().code(), Errc::kFailedPrecondition);
}

TEST_F(RegistryTest, SweepSettlesVmsWithoutWorkers) {
  const auto ran = vm_record("ran", v1::VM_RUNNING);
  const auto leaving = vm_record("leaving", v1::VM_RUNNING);
  const auto left = vm_record("left", v1::VM_RUNNING);
  const auto coming = vm_record("coming", v1::VM_INCOMING);
  for (const auto& record : {ran, leaving, left, coming}) add(record);
  ASSERT_TRUE(write_session(directory_of(leaving), session_record(leaving, v1::ROLE_LEAVING, v1::OUTCOME_OPEN)));
  ASSERT_TRUE(write_session(directory_of(left), session_record(left, v1::ROLE_LEAVING, v1::OUTCOME_STARTED)));
  reopen();
  ASSERT_TRUE(registry_->sweep());
  EXPECT_EQ(registry_->find("ran")->record.state(), v1::VM_LOST);
  EXPECT_EQ(registry_->find("leaving")->record.state(), v1::VM_UNSETTLED);
  EXPECT_EQ(registry_->find("left")->record.state(), v1::VM_MOVED);
  EXPECT_EQ(registry_->find("left")->record.moved_to(), "127.0.0.1:1");
  EXPECT_EQ(registry_->find("left")->record.fencing_token(), 2U);
  EXPECT_FALSE(registry_->find("coming"));
}

TEST_F(RegistryTest, SweepRemovesDirectoriesThatNeverGotARecord) {
  const auto stray = scratch_.path() / "vms" / Id::random().hex();
  ASSERT_TRUE(make_directories(stray));
  ASSERT_TRUE(registry_->sweep());
  EXPECT_FALSE(std::filesystem::exists(stray));
}

TEST_F(RegistryTest, BrokenRecordStopsTheStart) {
  const auto record = vm_record("web1", v1::VM_STOPPED);
  add(record);
  ASSERT_TRUE(replace_file(directory_of(record) / kVmRecordFile, "\xff\xff"));
  EXPECT_EQ(Registry::open(scratch_.path(), *ledger_).error().code(), Errc::kDataLoss);
}

// The VM left here and comes back: its MOVED record must survive every end of the attempt.
class ReturningVmTest : public RegistryTest {
 protected:
  void SetUp() override {
    RegistryTest::SetUp();
    moved_ = vm_record("web1", v1::VM_MOVED);
    moved_.set_moved_to("127.0.0.1:7001");
    old_session_ = session_record(moved_, v1::ROLE_LEAVING, v1::OUTCOME_STARTED);
    add(moved_);
    ASSERT_TRUE(write_session(directory_of(moved_), old_session_));
    incoming_ = moved_;
    incoming_.set_state(v1::VM_INCOMING);
    incoming_.set_moved_to("");
    incoming_.set_fencing_token(3);
  }
  Claim claim() { return std::move(*registry_->claim("web1", "migrate in", Registry::Allow::kUnsettled)); }
  v1::VmRecord record() { return registry_->find("web1")->record; }

  v1::VmRecord moved_;
  v1::VmRecord incoming_;
  v1::SessionRecord old_session_;
};

TEST_F(ReturningVmTest, ArrivalReplacesTheMovedRecord) {
  {
    Claim c = claim();
    ASSERT_TRUE(c.begin_incoming(incoming_));
    ASSERT_TRUE(c.finish_incoming([](v1::VmRecord& r) { r.set_state(v1::VM_RUNNING); }));
  }
  EXPECT_EQ(record().state(), v1::VM_RUNNING);
  EXPECT_EQ(record().fencing_token(), 3U);
  EXPECT_FALSE(std::filesystem::exists(directory_of(moved_) / kPreviousFile));
}

TEST_F(ReturningVmTest, FailureRestoresTheMovedRecord) {
  Claim c = claim();
  ASSERT_TRUE(c.begin_incoming(incoming_));
  ASSERT_TRUE(write_session(directory_of(moved_), session_record(moved_, v1::ROLE_MAY_START, v1::OUTCOME_REFUSED)));
  ASSERT_TRUE(c.drop_incoming());
  EXPECT_EQ(record().SerializeAsString(), moved_.SerializeAsString());
}

TEST_F(ReturningVmTest, OldSessionIsStillAnsweredAfterANewOneOverwritesIt) {
  ASSERT_TRUE(claim().begin_incoming(incoming_));
  const auto kept = ledger_->find(*Id::from_bytes(old_session_.session()));
  ASSERT_TRUE(kept && *kept);
  EXPECT_EQ((*kept)->outcome(), v1::OUTCOME_STARTED);
  EXPECT_FALSE(read_session(directory_of(moved_)));
}

TEST_F(ReturningVmTest, KillBeforeTheIncomingRecordKeepsMoved) {
  ASSERT_TRUE(write_vm_record(directory_of(moved_) / kPreviousFile, moved_));  // the step before vm.pb
  reopen();
  ASSERT_TRUE(registry_->sweep());
  EXPECT_EQ(record().state(), v1::VM_MOVED);
  EXPECT_FALSE(std::filesystem::exists(directory_of(moved_) / kPreviousFile));
}

TEST_F(ReturningVmTest, KillBeforeMayStartRestoresMoved) {
  ASSERT_TRUE(claim().begin_incoming(incoming_));
  reopen();
  ASSERT_TRUE(registry_->sweep());
  EXPECT_EQ(record().SerializeAsString(), moved_.SerializeAsString());
}

TEST_F(ReturningVmTest, KillAfterMayStartIsUnsettledAndThenLostOrRestored) {
  ASSERT_TRUE(claim().begin_incoming(incoming_));
  auto session = session_record(moved_, v1::ROLE_MAY_START, v1::OUTCOME_OPEN);
  ASSERT_TRUE(write_session(directory_of(moved_), session));
  reopen();
  ASSERT_TRUE(registry_->sweep());
  EXPECT_EQ(record().state(), v1::VM_UNSETTLED);
  reopen();  // a second restart changes nothing
  ASSERT_TRUE(registry_->sweep());
  EXPECT_EQ(record().state(), v1::VM_UNSETTLED);
  session.set_outcome(v1::OUTCOME_REFUSED);
  ASSERT_TRUE(write_session(directory_of(moved_), session));
  ASSERT_TRUE(claim().settle_without_worker(""));
  EXPECT_EQ(record().SerializeAsString(), moved_.SerializeAsString());
}

TEST_F(ReturningVmTest, KillBetweenRunningAndForgettingPreviousKeepsRunning) {
  {
    Claim c = claim();
    ASSERT_TRUE(c.begin_incoming(incoming_));
    ASSERT_TRUE(c.change([](v1::VmRecord& r) { r.set_state(v1::VM_RUNNING); }));
    ASSERT_TRUE(write_session(directory_of(moved_), session_record(moved_, v1::ROLE_MAY_START, v1::OUTCOME_STARTED)));
  }
  reopen();
  ASSERT_TRUE(registry_->sweep());
  EXPECT_EQ(record().state(), v1::VM_LOST);  // it ran here, and its worker is gone
  EXPECT_FALSE(std::filesystem::exists(directory_of(moved_) / kPreviousFile));
}

}  // namespace
}  // namespace fvmm::daemon
