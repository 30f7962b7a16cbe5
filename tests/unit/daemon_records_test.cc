#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "daemon/records.h"
#include "daemon/session_ledger.h"
#include "support/daemon_fakes.h"

namespace fvmm::daemon {
namespace {

using test::ScratchDirectory;
using test::session_record;
using test::vm_record;

TEST(Records, VmRecordComesBackAsWritten) {
  const ScratchDirectory scratch;
  const auto record = vm_record("web1", v1::VM_RUNNING);
  ASSERT_TRUE(write_vm_record(scratch.path() / kVmRecordFile, record));
  const auto read = read_vm_record(scratch.path() / kVmRecordFile);
  ASSERT_TRUE(read && *read);
  EXPECT_EQ((*read)->SerializeAsString(), record.SerializeAsString());
}

TEST(Records, AbsentVmRecordIsNoErrorButGarbageIs) {
  const ScratchDirectory scratch;
  const auto absent = read_vm_record(scratch.path() / kVmRecordFile);
  ASSERT_TRUE(absent);
  EXPECT_FALSE(*absent);
  ASSERT_TRUE(replace_file(scratch.path() / kVmRecordFile, "\xff\xff\xff"));
  EXPECT_EQ(read_vm_record(scratch.path() / kVmRecordFile).error().code(), Errc::kDataLoss);
}

// A record that cannot be read must never count as "no hand-over".
TEST(Records, UnreadableSessionCountsAsOpen) {
  const ScratchDirectory scratch;
  EXPECT_FALSE(read_session(scratch.path()));
  ASSERT_TRUE(replace_file(scratch.path() / kSessionFile, "\xff\xff\xff"));
  const auto session = read_session(scratch.path());
  ASSERT_TRUE(session);
  EXPECT_EQ(session->outcome(), v1::OUTCOME_OPEN);
  EXPECT_EQ(derive_without_worker(vm_record("a", v1::VM_RUNNING), session, "").state, v1::VM_UNSETTLED);
}

constexpr v1::VmState kStates[] = {v1::VM_CREATED,  v1::VM_RUNNING, v1::VM_PAUSED, v1::VM_STOPPED,   v1::VM_MIGRATING,
                                   v1::VM_INCOMING, v1::VM_MOVED,   v1::VM_FAILED, v1::VM_UNSETTLED, v1::VM_LOST};

TEST(DeriveWithoutWorker, OpenSessionMakesEveryStateUnsettledInBothRoles) {
  for (const v1::VmState state : kStates) {
    for (const auto role : {v1::ROLE_LEAVING, v1::ROLE_MAY_START, v1::SESSION_ROLE_NONE}) {
      const auto vm = vm_record("a", state);
      const auto now = derive_without_worker(vm, session_record(vm, role, v1::OUTCOME_OPEN), "");
      EXPECT_EQ(now.state, v1::VM_UNSETTLED) << state_text(state);
      EXPECT_FALSE(now.drop_replica) << state_text(state);
      EXPECT_NE(now.detail.find("migrate resolve"), std::string::npos);
    }
  }
}

TEST(DeriveWithoutWorker, NothingWithoutAWorkerIsEverRunningPausedOrMigrating) {
  for (const v1::VmState state : kStates) {
    for (const auto role : {v1::ROLE_LEAVING, v1::ROLE_MAY_START}) {
      for (const auto outcome : {v1::OUTCOME_OPEN, v1::OUTCOME_STARTED, v1::OUTCOME_REFUSED, v1::OUTCOME_ABORTED}) {
        const auto vm = vm_record("a", state);
        const auto now = derive_without_worker(vm, session_record(vm, role, outcome), "");
        if (now.drop_replica) continue;
        EXPECT_NE(now.state, v1::VM_RUNNING);
        EXPECT_NE(now.state, v1::VM_PAUSED);
        EXPECT_NE(now.state, v1::VM_MIGRATING);
        EXPECT_NE(now.state, v1::VM_INCOMING);
      }
    }
  }
}

TEST(DeriveWithoutWorker, RunningVmIsLostAndSaysHow) {
  const auto now = derive_without_worker(vm_record("a", v1::VM_RUNNING), std::nullopt, "killed by signal 11");
  EXPECT_EQ(now.state, v1::VM_LOST);
  EXPECT_NE(now.detail.find("killed by signal 11"), std::string::npos);
  EXPECT_NE(now.detail.find("start it again"), std::string::npos);
}

TEST(DeriveWithoutWorker, RestingStatesStay) {
  for (const v1::VmState state : {v1::VM_CREATED, v1::VM_STOPPED, v1::VM_MOVED, v1::VM_FAILED, v1::VM_LOST}) {
    auto vm = vm_record("a", state);
    vm.set_detail("why");
    const auto now = derive_without_worker(vm, std::nullopt, "");
    EXPECT_EQ(now.state, state);
    EXPECT_EQ(now.detail, "why");
  }
}

TEST(DeriveWithoutWorker, RecordBehindASettledDepartureIsMoved) {
  for (const v1::VmState state : {v1::VM_RUNNING, v1::VM_PAUSED, v1::VM_UNSETTLED}) {
    const auto vm = vm_record("a", state);
    EXPECT_EQ(derive_without_worker(vm, session_record(vm, v1::ROLE_LEAVING, v1::OUTCOME_STARTED), "").state,
              v1::VM_MOVED);
  }
}

TEST(DeriveWithoutWorker, DepartureThatDidNotHappenIsLostWithItsWorker) {
  for (const auto outcome : {v1::OUTCOME_REFUSED, v1::OUTCOME_ABORTED}) {
    const auto vm = vm_record("a", v1::VM_RUNNING);
    EXPECT_EQ(derive_without_worker(vm, session_record(vm, v1::ROLE_LEAVING, outcome), "").state, v1::VM_LOST);
  }
}

TEST(DeriveWithoutWorker, ReplicaThatNeverRanIsDroppedOneThatRanIsLost) {
  const auto vm = vm_record("a", v1::VM_INCOMING);
  EXPECT_TRUE(derive_without_worker(vm, std::nullopt, "").drop_replica);
  EXPECT_TRUE(derive_without_worker(vm, session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_REFUSED), "").drop_replica);
  EXPECT_TRUE(derive_without_worker(vm, session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_ABORTED), "").drop_replica);
  const auto ran = derive_without_worker(vm, session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_STARTED), "");
  EXPECT_FALSE(ran.drop_replica);
  EXPECT_EQ(ran.state, v1::VM_LOST);
}

TEST(SessionLedger, RemembersAndIsReadBack) {
  const ScratchDirectory scratch;
  const auto vm = vm_record("a", v1::VM_RUNNING);
  const auto session = session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_STARTED);
  {
    auto ledger = SessionLedger::open(scratch.path() / "sessions", 10);
    ASSERT_TRUE(ledger);
    ASSERT_TRUE((*ledger)->record(session));
  }
  auto ledger = SessionLedger::open(scratch.path() / "sessions", 10);
  ASSERT_TRUE(ledger);
  const auto found = (*ledger)->find(*Id::from_bytes(session.session()));
  ASSERT_TRUE(found && *found);
  EXPECT_EQ((*found)->outcome(), v1::OUTCOME_STARTED);
  const auto other = (*ledger)->find(Id::random());
  ASSERT_TRUE(other);
  EXPECT_FALSE(*other);
}

TEST(SessionLedger, TakesItsLimitAndRefusesOnePast) {
  const ScratchDirectory scratch;
  auto ledger = SessionLedger::open(scratch.path() / "sessions", 2);
  ASSERT_TRUE(ledger);
  const auto vm = vm_record("a", v1::VM_RUNNING);
  const auto first = session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_REFUSED);
  ASSERT_TRUE((*ledger)->record(first));
  ASSERT_TRUE((*ledger)->record(session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_REFUSED)));
  EXPECT_EQ((*ledger)->record(session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_REFUSED)).error().code(),
            Errc::kResourceExhausted);
  EXPECT_TRUE((*ledger)->record(first));  // no new entry
}

TEST(SessionLedger, MakesRoomOnlyFromOldEntries) {
  const ScratchDirectory scratch;
  auto ledger = SessionLedger::open(scratch.path() / "sessions", 1);
  ASSERT_TRUE(ledger);
  const auto vm = vm_record("a", v1::VM_RUNNING);
  const auto old = session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_STARTED);
  ASSERT_TRUE((*ledger)->record(old));
  std::filesystem::last_write_time(
      scratch.path() / "sessions" / Id::from_bytes(old.session())->hex(),
      std::filesystem::file_time_type::clock::now() - std::chrono::hours(24 * kLedgerDaysKept + 1));
  EXPECT_TRUE((*ledger)->record(session_record(vm, v1::ROLE_MAY_START, v1::OUTCOME_STARTED)));
}

}  // namespace
}  // namespace fvmm::daemon
