// Recovery at the peer, with fake workers in this process: what can be refused is refused before the right to run is
// taken, because from there on the source's guest is stopped.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "base/file.h"
#include "daemon/replication_service.h"
#include "disk/lock.h"
#include "memory/template_format.h"
#include "migration/generation_line.h"
#include "net/pipe_stream.h"
#include "support/net_peer.h"
#include "support/stored_template.h"
#include "support/vm_services.h"

namespace fvmm::daemon {
namespace {

using fvmm::testing::kTestMemoryBytes;

constexpr std::chrono::seconds kWait{20};

class RecoverTest : public test::VmServices {
 protected:
  void SetUp() override {
    spdlog::default_logger_raw()->set_level(spdlog::level::off);
    VmServices::SetUp();
    replicas_ = std::make_unique<Replicas>(*Replicas::open(scratch_.path() / "replicas", kGiB));
    stops_ = *ReplicaStops::open({.directory = scratch_.path() / "replica-stops", .tell = {}, .on_recovered = {}});
    ReplicationService::Options options;
    options.listen = "127.0.0.1:2";
    options.check_cpu = [this](const v1::MachineState& state) { return check_cpu_ ? check_cpu_(state) : Status(); };
    service_ = std::make_unique<ReplicationService>(
        ReplicationService::Parts{*registry_, *store_, *replicas_, *stops_, *vms_}, std::move(options));
    config_ = test::vm_record("web1", v1::VM_RUNNING, kTestMemoryBytes).config();
    request_.set_vm("web1");
    request_.set_source_is_dead(true);  // nobody listens at its address
  }
  [[nodiscard]] Id id() const { return *Id::from_bytes(config_.id()); }
  /// The source has replicated `config_` to here, under token 1: one more generation is sealed.
  void replicate(std::uint64_t number = 1) {
    v1::MachineState state;
    state.set_version(1);
    state.set_fencing_token(1);
    v1::PeerHello hello;
    *hello.mutable_vm() = config_;
    hello.set_from("127.0.0.1:1");
    hello.set_fencing_token(1);
    const auto stream = net::PipeStream::make({}, {}).first;
    ASSERT_TRUE(replicas_->begin(hello, *stream).ok());
    const std::string name = memory::generation_name(migration::replica_line(config_), number);
    auto writer = store_->begin(
        {.id = Id{}, .name = name, .generation = number, .memory_bytes = kTestMemoryBytes, .config = config_});
    ASSERT_TRUE(writer.ok()) << writer.error().message();
    ASSERT_TRUE(writer->set_machine_state(state).ok());
    ASSERT_TRUE(writer->seal().ok());
    newest_ = store_->directory() / name;
  }
  Result<v1::RecoverReport> recover(const Deadline& deadline = Deadline::after(kWait)) {
    return service_->recover(request_, deadline);
  }
  void place(const std::string& network, const std::string& socket) {
    request_.clear_nets();
    v1::NetPlace& place = *request_.add_nets();
    place.set_id(network);
    place.mutable_net()->set_socket(socket);
  }
  /// Not recovered, with those words; the source's right is what it was, and nothing of a recovery is here.
  void expect_refused(Errc code, std::string_view says, const Deadline& deadline = Deadline::after(kWait)) {
    const auto report = recover(deadline);
    ASSERT_FALSE(report.ok());
    EXPECT_EQ(report.error().code(), code) << report.error().message();
    EXPECT_NE(report.error().message().find(says), std::string::npos) << report.error().message();
    EXPECT_EQ(report.error().message().find("is this host's now"), std::string::npos) << report.error().message();
    EXPECT_TRUE(replicas_->unless_recovered(id(), 1, [] {})) << "its source may go on";
    const auto read_again = Replicas::open(scratch_.path() / "replicas", kGiB);
    EXPECT_EQ(read_again->find(id())->fencing_token(), 0U) << "no token was given";
    EXPECT_FALSE(registry_->find(id()).has_value());
    EXPECT_FALSE(std::filesystem::exists(scratch_.path() / "vms" / id().hex()));
    for (std::size_t i = 0; i < spawner_.spawned(); ++i) EXPECT_EQ(spawner_.worker(i).calls("Stop"), 1) << i;
  }
  void expect_recovered(std::uint64_t generation = 1, std::uint64_t token = 2) {
    const auto report = recover();
    ASSERT_TRUE(report.ok()) << report.error().message();
    EXPECT_EQ(report->generation(), generation);
    EXPECT_EQ(report->vm().state(), v1::VM_RUNNING);
    EXPECT_EQ(report->vm().fencing_token(), token);
    EXPECT_EQ(replicas_->find(id())->fencing_token(), token);
    EXPECT_FALSE(replicas_->unless_recovered(id(), 1, [] {}));
  }

  std::unique_ptr<Replicas> replicas_;
  std::unique_ptr<ReplicaStops> stops_;
  std::unique_ptr<ReplicationService> service_;
  std::function<Status(const v1::MachineState&)> check_cpu_;
  v1::VmConfig config_;
  v1::RecoverRequest request_;
  std::filesystem::path newest_;
};

TEST_F(RecoverTest, WhatIsSealedRunsHereUnderANewToken) {
  replicate(1);
  replicate(2);
  expect_recovered(2);
  EXPECT_EQ(spawner_.worker(0).calls("Clone"), 1);
  const auto again = recover();
  EXPECT_EQ(again.error().code(), Errc::kAlreadyExists) << again.error().message();
  EXPECT_EQ(replicas_->find(id())->fencing_token(), 2U);
}

TEST_F(RecoverTest, ANetworkThatCannotBeOpenedIsRefusedFirstAndMayBePlacedElsewhere) {
  v1::NetConfig& net = *config_.add_nets();
  net.set_mac(std::string("\x02\x01\x02\x03\x04\x05", 6));
  net.set_socket((scratch_.path() / "nobody").string());
  replicate();
  expect_refused(Errc::kNotFound, "net0");
  fvmm::testing::NetPeer there((scratch_.path() / "there").string());
  place("net1", there.path());
  expect_refused(Errc::kInvalidArgument, "no network \"net1\"");
  place("net0", there.path());
  expect_recovered();
  ASSERT_TRUE(there.accept());
  const auto vm = registry_->find(id());
  EXPECT_EQ(vm->record.config().nets(0).socket(), there.path()) << "also when it is started again";
  EXPECT_EQ(vm->record.config().nets(0).mac(), net.mac());
}

TEST_F(RecoverTest, ADiskThatIsMissingOrTakenIsRefusedFirst) {
  const std::string file = (scratch_.path() / "disk").string();
  v1::DiskConfig& disk = *config_.add_disks();
  disk.set_path(file);
  disk.set_readonly(true);
  disk.set_shared(true);
  replicate();
  expect_refused(Errc::kNotFound, "disk " + file + " is missing");
  std::ofstream(file) << std::string(4096, 'x');
  {
    const UniqueFd writer = open_file(file, O_RDWR).value();
    auto lock = disk::FileLock::of(writer.get(), file);
    ASSERT_TRUE(lock->take(disk::LockKind::kOneWriter).ok());
    expect_refused(Errc::kFailedPrecondition, "disk " + file + " is in use by process");
  }
  expect_recovered();
}

TEST_F(RecoverTest, WithoutAWorkerItIsRefusedFirst) {
  replicate();
  spawner_.fail_next = true;
  expect_refused(Errc::kInternal, "/dev/kvm is missing");
  expect_recovered();
}

TEST_F(RecoverTest, AGenerationThatCannotRunIsRefusedFirst) {
  replicate(2);
  std::string state = *read_file(newest_ / memory::kMachineFile, kMiB);
  state.back() ^= 1;  // nothing that is looked at before it is opened
  std::ofstream(newest_ / memory::kMachineFile) << state;
  expect_refused(Errc::kDataLoss, newest_.filename().string());
  replicate(3);
  check_cpu_ = [](const v1::MachineState&) { return Status(Error(Errc::kFailedPrecondition, "no avx here")); };
  expect_refused(Errc::kFailedPrecondition, "no avx here");
  check_cpu_ = check_cpu_here;
  expect_refused(Errc::kDataLoss, "no vCPU state");
  check_cpu_ = {};
  expect_recovered(3);
}

TEST_F(RecoverTest, ANameThatAnotherVmHasIsRefusedFirst) {
  replicate();
  {
    const auto other = registry_->reserve({test::vm_record("web1", v1::VM_CREATED, kTestMemoryBytes)}, "create");
    ASSERT_TRUE(other.ok());
    expect_refused(Errc::kAlreadyExists, "web1");
  }
  expect_recovered();
}

TEST_F(RecoverTest, PastItsDeadlineItTakesNoRight) {
  replicate();
  expect_refused(Errc::kDeadlineExceeded, "the right to run it was not taken", Deadline::after(kWait - kWait));
  expect_recovered();
}

TEST_F(RecoverTest, ASealUnderWayIsWaitedForAndPastTheDeadlineNothingIsTaken) {
  replicate();
  std::promise<void> sealing;
  std::promise<void> sealed;
  std::thread source([&] {
    replicas_->unless_recovered(id(), 1, [&] {
      sealing.set_value();
      EXPECT_EQ(sealed.get_future().wait_for(3 * kWait), std::future_status::ready);
    });
  });
  EXPECT_EQ(sealing.get_future().wait_for(kWait), std::future_status::ready);
  const auto late = recover(Deadline::after(std::chrono::milliseconds(100)));
  auto waits = std::async(std::launch::async, [&] { return recover(); });
  // It waits for the seal with its worker ready.
  EXPECT_TRUE(test::eventually([&] { return spawner_.spawned() >= 2; }));
  sealed.set_value();
  source.join();
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code(), Errc::kDeadlineExceeded);
  EXPECT_NE(late.error().message().find("still being sealed here"), std::string::npos) << late.error().message();
  const auto report = waits.get();
  ASSERT_TRUE(report.ok()) << report.error().message();
  EXPECT_EQ(report->vm().fencing_token(), 2U) << "the one that was late took none";
}

// A source that lives, while a recovery is made ready.
TEST_F(RecoverTest, WhatIsSealedMeanwhileIsWhatRunsUnlessItIsAnotherMachine) {
  replicate();
  check_cpu_ = [&](const v1::MachineState&) {
    config_.set_cmdline("other");
    replicate(2);
    return Status();
  };
  expect_refused(Errc::kFailedPrecondition, "replicated anew meanwhile");
  check_cpu_ = [&](const v1::MachineState&) {
    replicate(3);
    return Status();
  };
  expect_recovered(3);
  EXPECT_EQ(registry_->find(id())->record.template_().name(), newest_.filename().string());
}

TEST_F(RecoverTest, AStartThatFailsAfterTheTokenSaysWhoseVmItIsAndHowItGoesOn) {
  replicate();
  spawner_.prepare = [](test::FakeWorker& worker) {
    worker.on_start = [](const v1::VmConfig&) -> Result<v1::WorkerInfo> { return Error(Errc::kIo, "no memory slot"); };
  };
  const auto report = recover();
  ASSERT_FALSE(report.ok());
  for (const auto* part : {"recover web1: VM web1 is this host's now, and did not start (", "no memory slot",
                           "): repair that, then \"fvmmctl vm start web1\""}) {
    EXPECT_NE(report.error().message().find(part), std::string::npos) << report.error().message();
  }
  EXPECT_EQ(replicas_->find(id())->fencing_token(), 2U);
  EXPECT_EQ(registry_->find(id())->state(), v1::VM_CREATED);
  EXPECT_EQ(spawner_.worker(0).calls("Stop"), 1);
  spawner_.prepare = {};
  const auto started = vms_->start("web1", Deadline::after(kWait));
  ASSERT_TRUE(started.ok()) << started.error().message();
  EXPECT_EQ(started->state(), v1::VM_RUNNING);
  EXPECT_EQ(started->fencing_token(), 2U);
}

TEST_F(RecoverTest, ARecordThatCannotBeWrittenAfterTheTokenIsSaidAndItIsRecoveredAgain) {
  replicate();
  std::ofstream(scratch_.path() / "vms" / id().hex()) << "in the way";
  const auto report = recover();
  ASSERT_FALSE(report.ok());
  for (const auto* part : {"VM web1 is this host's now, and could not be recorded", "fvmmctl replicate recover web1"}) {
    EXPECT_NE(report.error().message().find(part), std::string::npos) << report.error().message();
  }
  expect_recovered(1, 3);
}

// It was here before, was replicated to where it ran next, and comes back.
TEST_F(RecoverTest, WhatItWasReplicatedToUnderAnOlderRightDoesNotHoldUpItsStart) {
  {
    v1::VmRecord record;
    *record.mutable_config() = config_;
    record.set_state(v1::VM_LOST);
    record.set_fencing_token(1);
    auto claims = registry_->reserve({record}, "create");
    ASSERT_TRUE(claims->front().change([](v1::VmRecord&) {}).ok());
    ASSERT_TRUE(replace_file(claims->front().view().directory / kReplicaFile, "to there").ok());
  }
  replicate();
  expect_recovered();
  ASSERT_TRUE(vms_->stop("web1").ok());
  const auto started = vms_->start("web1", Deadline::after(kWait));
  EXPECT_TRUE(started.ok()) << started.error().message();
}

/// The source's side: the record that keeps it from starting a VM which somebody may have recovered.
class ReplicateRecordTest : public RecoverTest {
 protected:
  void SetUp() override {
    RecoverTest::SetUp();
    ASSERT_TRUE(replace_file(kernel_, "ELF"));
    v1::CreateVmRequest request;
    *request.mutable_config() = config_;
    request.mutable_config()->set_kernel(kernel_);
    request.set_start(true);
    const auto made = vms_->create(request, Deadline::after(kWait));
    ASSERT_TRUE(made.ok()) << made.error().message();
  }
  Errc start_answered(Errc answer) {
    spawner_.worker(0).on_replicate = [answer] { return Error(answer, "scripted"); };
    v1::ReplicateRequest request;
    request.set_vm("web1");
    request.set_to("127.0.0.1:1");
    return service_->start(request, Deadline::after(kWait)).error().code();
  }
  bool recorded() { return std::filesystem::exists(registry_->find("web1")->directory / kReplicaFile); }

  const std::string kernel_ = (scratch_.path() / "kernel.elf").string();
};

TEST_F(ReplicateRecordTest, GoesWhenTheWorkerSaysNo) {
  for (const Errc answer : {Errc::kInvalidArgument, Errc::kFailedPrecondition, Errc::kAlreadyExists}) {
    EXPECT_EQ(start_answered(answer), answer);
    EXPECT_FALSE(recorded()) << to_string(answer);
  }
}

// The worker may have begun, and something of the VM may be sealed at the peer: whoever recovers it there must not find
// it running here again.
TEST_F(ReplicateRecordTest, StaysWhenNobodyKnowsWhatTheWorkerDid) {
  for (const Errc answer : {Errc::kUnavailable, Errc::kInternal, Errc::kDeadlineExceeded, Errc::kUnknown}) {
    EXPECT_EQ(start_answered(answer), answer);
    EXPECT_TRUE(recorded()) << to_string(answer);
  }
  EXPECT_TRUE(vms_->stop("web1").ok());
  const auto started = vms_->start("web1", Deadline::after(kWait));
  ASSERT_FALSE(started.ok());
  EXPECT_EQ(started.error().code(), Errc::kFailedPrecondition) << started.error().message();
}

}  // namespace
}  // namespace fvmm::daemon
