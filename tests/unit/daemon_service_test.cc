// The services over a real registry and pool, with fake workers in this process.
#include <gtest/gtest.h>

#include <fstream>

#include "base/file.h"
#include "daemon/migration_service.h"
#include "daemon/template_service.h"
#include "support/vm_services.h"

namespace fvmm::daemon {
namespace {

constexpr std::uint64_t kMemory = 64 * kMiB;
constexpr Shape kShape{kMemory, 1};

Deadline soon() {
  return Deadline::after(std::chrono::seconds(20));
}

class ServiceTest : public test::VmServices {
 protected:
  void SetUp() override {
    ASSERT_TRUE(replace_file(kernel_, "ELF"));
    VmServices::SetUp();
    templates_ = std::make_unique<TemplateService>(*registry_, *store_, nullptr);
    MigrationService::Options options;
    options.ask = [this](const v1::SessionRecord&) -> Result<v1::SessionAnswer> {
      if (peer_says_.empty()) return Error(Errc::kUnavailable, "connection refused");
      v1::SessionAnswer answer;
      answer.set_outcome(peer_says_);
      return answer;
    };
    migrations_ = std::make_unique<MigrationService>(*registry_, *store_, stop_, std::move(options));
  }
  v1::CreateVmRequest request(const std::string& name, bool start) {
    v1::CreateVmRequest out;
    *out.mutable_config() = test::vm_record(name, v1::VM_CREATED, kMemory).config();
    out.mutable_config()->set_kernel(kernel_);
    out.set_start(start);
    return out;
  }
  void run_vm(const std::string& name) {
    const auto info = vms_->create(request(name, true), soon());
    ASSERT_TRUE(info) << info.error().message();
    ASSERT_EQ(info->state(), v1::VM_RUNNING);
  }
  v1::VmState state(const std::string& name) { return registry_->find(name)->state(); }
  std::filesystem::path directory(const std::string& name) { return registry_->find(name)->directory; }
  void seal_template(const std::string& name) {
    v1::VmConfig config = test::vm_record("origin", v1::VM_CREATED, kMemory).config();
    auto writer = store_->begin({.id = Id{}, .name = name, .generation = 1, .memory_bytes = kMemory, .config = config});
    ASSERT_TRUE(writer);
    v1::MachineState machine;
    machine.set_version(1);
    ASSERT_TRUE(writer->set_machine_state(machine));
    ASSERT_TRUE(writer->seal());
  }
  static v1::MigrateRequest migrate_request() {
    v1::MigrateRequest out;
    out.set_vm("web1");
    out.set_to("127.0.0.1:7001");
    return out;
  }
  Result<v1::MigrateEvent> migrate() {
    return migrations_->migrate(migrate_request(), [this](const v1::MigrateEvent&) { ++progress_; });
  }
  /// What a source's worker does: the record, the state, the result.
  void script_migration(v1::SessionOutcome outcome, v1::VmState after, const std::string& result) {
    spawner_.worker(0).on_migrate = [=, this](control::Call& call,
                                              const v1::WorkerMigrateRequest&) -> Result<v1::MigrateEvent> {
      const auto record = registry_->find("web1")->record;
      v1::SessionRecord session = test::session_record(record, v1::ROLE_LEAVING, outcome);
      session.set_peer("127.0.0.1:7001");
      FVMM_TRY(write_session(directory("web1"), session));
      v1::MigrateEvent event;
      event.set_phase("round");
      FVMM_TRY(call.send(event));
      spawner_.worker(0).report(after);
      event.mutable_result()->set_result(result);
      event.mutable_result()->set_duration_ms(5);
      return event;
    };
  }

  const std::string kernel_ = (scratch_.path() / "kernel").string();
  std::string peer_says_;
  std::atomic<int> progress_ = 0;
  std::unique_ptr<TemplateService> templates_;
  std::unique_ptr<MigrationService> migrations_;
};

TEST_F(ServiceTest, CreatedVmStartsPausesResumesStopsAndIsRemoved) {
  const auto created = vms_->create(request("web1", false), soon());
  ASSERT_TRUE(created) << created.error().message();
  EXPECT_EQ(created->state(), v1::VM_CREATED);
  const auto started = vms_->start("web1", soon());
  ASSERT_TRUE(started) << started.error().message();
  EXPECT_EQ(started->state(), v1::VM_RUNNING);
  EXPECT_GT(started->worker_pid(), 0);
  EXPECT_GT(started->start_ms(), 0);
  EXPECT_EQ(vms_->pause("web1", soon())->state(), v1::VM_PAUSED);
  EXPECT_EQ(vms_->start("web1", soon()).error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(vms_->resume("web1", soon())->state(), v1::VM_RUNNING);
  const auto refused = vms_->remove("web1");
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(refused.error().message().find("stop it first"), std::string::npos);
  EXPECT_EQ(vms_->stop("web1")->state(), v1::VM_STOPPED);
  EXPECT_EQ(vms_->stop("web1").error().code(), Errc::kFailedPrecondition);
  ASSERT_TRUE(vms_->remove("web1"));
  EXPECT_EQ(vms_->show("web1").error().code(), Errc::kNotFound);
}

TEST_F(ServiceTest, StoppedVmBootsAgain) {
  run_vm("web1");
  ASSERT_TRUE(vms_->stop("web1"));
  EXPECT_EQ(vms_->start("web1", soon())->state(), v1::VM_RUNNING);
  EXPECT_EQ(spawner_.worker(1).calls("Boot"), 1);
}

TEST_F(ServiceTest, BootThatFailsLeavesNoVmOfCreateStartAndNoWorker) {
  spawner_.prepare = [](test::FakeWorker& worker) {
    worker.on_start = [](const v1::VmConfig&) -> Result<v1::WorkerInfo> {
      return Error(Errc::kInvalidArgument, "the kernel has no PVH note");
    };
  };
  const auto created = vms_->create(request("web1", true), soon());
  ASSERT_FALSE(created);
  EXPECT_EQ(created.error().code(), Errc::kInvalidArgument);
  EXPECT_NE(created.error().message().find("PVH note"), std::string::npos);
  EXPECT_TRUE(vms_->list().vms().empty());
  EXPECT_EQ(spawner_.worker(0).calls("Stop"), 1);
}

TEST_F(ServiceTest, CreateNamesEachBadInput) {
  ASSERT_TRUE(vms_->create(request("web1", false), soon()));
  EXPECT_EQ(vms_->create(request("web1", false), soon()).error().code(), Errc::kAlreadyExists);
  auto bad = request("web2", false);
  bad.mutable_config()->set_kernel("/nowhere/vmlinux");
  EXPECT_EQ(vms_->create(bad, soon()).error().code(), Errc::kNotFound);
  bad = request("web2", false);
  bad.mutable_config()->set_memory_bytes(kMemory + 1);
  EXPECT_EQ(vms_->create(bad, soon()).error().code(), Errc::kInvalidArgument);
  EXPECT_EQ(vms_->list().vms_size(), 1);
}

TEST_F(ServiceTest, DeadWorkerMakesTheVmLostAndItStartsAgain) {
  run_vm("web1");
  spawner_.worker(0).end();
  ASSERT_TRUE(test::eventually([&] { return state("web1") == v1::VM_LOST; }));
  EXPECT_NE(vms_->show("web1")->detail().find("signal 9"), std::string::npos);
  EXPECT_EQ(vms_->start("web1", soon())->state(), v1::VM_RUNNING);
}

TEST_F(ServiceTest, GuestThatPowersOffIsStoppedAndItsWorkerEnds) {
  run_vm("web1");
  spawner_.worker(0).report(v1::VM_STOPPED, "powered off");
  ASSERT_TRUE(
      test::eventually([&] { return !registry_->find("web1")->worker && registry_->find("web1")->busy.empty(); }));
  EXPECT_EQ(state("web1"), v1::VM_STOPPED);
}

TEST_F(ServiceTest, FailedGuestKeepsItsReport) {
  run_vm("web1");
  spawner_.worker(0).report(v1::VM_FAILED, "KVM_EXIT_INTERNAL_ERROR at rip 0x1000");
  ASSERT_TRUE(
      test::eventually([&] { return !registry_->find("web1")->worker && registry_->find("web1")->busy.empty(); }));
  EXPECT_EQ(state("web1"), v1::VM_FAILED);
  EXPECT_NE(vms_->show("web1")->detail().find("rip 0x1000"), std::string::npos);
}

TEST_F(ServiceTest, PokeNeedsTestHooks) {
  run_vm("web1");
  v1::PokeRequest poke;
  poke.set_name("web1");
  EXPECT_EQ(vms_->poke(poke, soon()).error().code(), Errc::kPermissionDenied);
  VmService hooked(*registry_, *pool_, *supervisor_, *store_, cpus_, true);
  EXPECT_TRUE(hooked.poke(poke, soon()));
}

TEST_F(ServiceTest, LogsReadFromTheOffsetAndFollowUntilTheWorkerEnds) {
  run_vm("web1");
  std::ofstream serial(directory("web1") / kSerialLogFile);
  serial << "hello " << std::flush;
  v1::LogsRequest logs;
  logs.set_name("web1");
  logs.set_offset(1);
  std::string text;
  const auto collect = [&](const v1::LogChunk& chunk) -> Status {
    text += chunk.data();
    if (logs.follow() && text == "ello ") serial << "world" << std::flush;
    if (logs.follow() && text == "ello world") spawner_.worker(0).end();
    return {};
  };
  const auto never = [] { return false; };
  EXPECT_EQ(vms_->logs(logs, collect, never)->offset(), 6U);
  EXPECT_EQ(text, "ello ");
  text.clear();
  logs.set_follow(true);
  EXPECT_TRUE(vms_->logs(logs, collect, never));
  EXPECT_EQ(text.substr(0, 10), "ello world");
}

TEST_F(ServiceTest, FollowingLogsEndsWhenTheReaderLeaves) {
  run_vm("web1");
  std::ofstream(directory("web1") / kSerialLogFile) << "x";
  v1::LogsRequest logs;
  logs.set_name("web1");
  logs.set_follow(true);
  EXPECT_TRUE(vms_->logs(
      logs, [](const v1::LogChunk&) { return Status(); }, [] { return true; }));
}

TEST_F(ServiceTest, ClonesAreNumberedNewVmsOfTheTemplate) {
  seal_template("t1");
  v1::CloneRequest clone;
  clone.set_name("c");
  clone.set_template_("t1");
  clone.set_count(3);
  clone.set_start(true);
  const auto made = vms_->clone(clone, soon());
  ASSERT_TRUE(made) << made.error().message();
  ASSERT_EQ(made->vms_size(), 3);
  EXPECT_EQ(made->vms(0).config().name(), "c-1");
  EXPECT_NE(made->vms(0).config().id(), made->vms(1).config().id());
  EXPECT_EQ(made->vms(2).state(), v1::VM_RUNNING);
  EXPECT_GT(made->vms(2).start_ms(), 0);
  EXPECT_EQ(registry_->find("c-1")->record.template_().name(), "t1");
}

TEST_F(ServiceTest, CloneStartsAgainFromItsTemplate) {
  seal_template("t1");
  v1::CloneRequest clone;
  clone.set_name("c");
  clone.set_template_("t1");
  ASSERT_TRUE(vms_->clone(clone, soon()));
  ASSERT_TRUE(vms_->start("c", soon()));
  EXPECT_EQ(spawner_.worker(0).calls("Clone"), 1);
  ASSERT_TRUE(vms_->stop("c"));
  ASSERT_TRUE(store_->remove("t1"));
  const auto gone = vms_->start("c", soon());
  EXPECT_EQ(gone.error().code(), Errc::kNotFound);
  EXPECT_NE(gone.error().message().find("t1"), std::string::npos);
}

TEST_F(ServiceTest, CloneIsAllOrNothingWithNamesTakenAndWithAFailedStart) {
  seal_template("t1");
  v1::CloneRequest clone;
  clone.set_name("c");
  clone.set_template_("t1");
  clone.set_count(2);
  clone.set_start(true);
  ASSERT_TRUE(vms_->create(request("c-2", false), soon()));
  EXPECT_EQ(vms_->clone(clone, soon()).error().code(), Errc::kAlreadyExists);
  EXPECT_EQ(vms_->list().vms_size(), 1);
  ASSERT_TRUE(vms_->remove("c-2"));
  spawner_.prepare = [](test::FakeWorker& worker) {
    worker.on_start = [&worker](const v1::VmConfig& config) -> Result<v1::WorkerInfo> {
      if (config.name() == "c-2") return Error(Errc::kIo, "no");
      worker.carry(config, v1::VM_RUNNING);
      return worker.info();
    };
  };
  EXPECT_FALSE(vms_->clone(clone, soon()));
  EXPECT_TRUE(vms_->list().vms().empty());
  clone.set_template_("t2");
  EXPECT_EQ(vms_->clone(clone, soon()).error().code(), Errc::kNotFound);
  clone.set_count(kClonesMax + 1);
  EXPECT_EQ(vms_->clone(clone, soon()).error().code(), Errc::kInvalidArgument);
}

TEST_F(ServiceTest, TemplateIsTakenByTheWorkerOfARunningVmOnly) {
  run_vm("web1");
  v1::CreateTemplateRequest create;
  create.set_name("t1");
  create.set_vm("web1");
  create.set_engine("stop");
  spawner_.worker(0).on_template = [](const v1::WorkerTemplateRequest& work) -> Result<v1::TemplateInfo> {
    v1::TemplateInfo info;
    info.mutable_ref()->set_name(work.name());
    return info;
  };
  EXPECT_EQ(templates_->create(create, soon())->ref().name(), "t1");
  create.set_engine("teleport");
  EXPECT_EQ(templates_->create(create, soon()).error().code(), Errc::kInvalidArgument);
  create.set_engine("");
  ASSERT_TRUE(vms_->stop("web1"));
  EXPECT_EQ(templates_->create(create, soon()).error().code(), Errc::kFailedPrecondition);
  seal_template("t1");
  EXPECT_EQ(templates_->create(create, soon()).error().code(), Errc::kAlreadyExists);
  EXPECT_EQ(templates_->list()->templates_size(), 1);
  EXPECT_TRUE(templates_->verify("t1")->good());
  EXPECT_EQ(templates_->show("t1")->ref().memory_bytes(), kMemory);
}

TEST_F(ServiceTest, CompletedMigrationLeavesAMovedVmAndNoWorker) {
  run_vm("web1");
  script_migration(v1::OUTCOME_STARTED, v1::VM_MOVED, "completed");
  const auto event = migrate();
  ASSERT_TRUE(event) << event.error().message();
  EXPECT_EQ(event->result().result(), "completed");
  EXPECT_GE(event->result().duration_ms(), 5);
  EXPECT_GT(event->result().teardown_ms(), 0);
  EXPECT_EQ(progress_, 1);
  const auto vm = *registry_->find("web1");
  EXPECT_EQ(vm.record.state(), v1::VM_MOVED);
  EXPECT_EQ(vm.record.moved_to(), "127.0.0.1:7001");
  EXPECT_EQ(vm.record.fencing_token(), 2U);
  EXPECT_FALSE(vm.worker);
  const auto start = vms_->start("web1", soon());
  EXPECT_EQ(start.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(start.error().message().find("127.0.0.1:7001"), std::string::npos);
}

/// What a worker says of its own departure.
std::function<v1::SessionAnswer(const v1::SessionQuery&)> knows(const std::string& outcome) {
  return [outcome](const v1::SessionQuery&) {
    v1::SessionAnswer answer;
    answer.set_outcome(outcome);
    return answer;
  };
}

TEST_F(ServiceTest, DepartureThatItsWorkerCouldNotRecordIsRecordedByTheDaemon) {
  run_vm("web1");
  script_migration(v1::OUTCOME_OPEN, v1::VM_MOVED, "completed");
  spawner_.worker(0).answer_with(knows("started"));
  const auto event = migrate();
  ASSERT_TRUE(event) << event.error().message();
  EXPECT_EQ(event->result().result(), "completed");
  EXPECT_EQ(read_session(directory("web1"))->outcome(), v1::OUTCOME_STARTED);
  EXPECT_EQ(registry_->find("web1")->record.state(), v1::VM_MOVED);
}

TEST_F(ServiceTest, AbortThatItsWorkerCouldNotRecordLeavesTheVmAsItWas) {
  run_vm("web1");
  script_migration(v1::OUTCOME_OPEN, v1::VM_RUNNING, "aborted");
  spawner_.worker(0).answer_with(knows("refused"));
  EXPECT_EQ(migrate()->result().result(), "aborted");
  EXPECT_EQ(read_session(directory("web1"))->outcome(), v1::OUTCOME_ABORTED);
  EXPECT_EQ(state("web1"), v1::VM_RUNNING);
}

TEST_F(ServiceTest, AbortedMigrationLeavesTheVmAsItWas) {
  run_vm("web1");
  script_migration(v1::OUTCOME_ABORTED, v1::VM_RUNNING, "aborted");
  EXPECT_EQ(migrate()->result().result(), "aborted");
  EXPECT_EQ(state("web1"), v1::VM_RUNNING);
  EXPECT_TRUE(vms_->pause("web1", soon()));
}

TEST_F(ServiceTest, UnansweredHandOverIsUnsettledAndEverythingElseIsRefused) {
  run_vm("web1");
  script_migration(v1::OUTCOME_OPEN, v1::VM_UNSETTLED, "unknown");
  EXPECT_EQ(migrate()->result().result(), "unknown");
  EXPECT_EQ(registry_->find("web1")->record.state(), v1::VM_UNSETTLED);
  for (const Status& refused : {Status(vms_->remove("web1"))}) {
    EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
    EXPECT_NE(refused.error().message().find("migrate resolve"), std::string::npos);
  }
  EXPECT_EQ(vms_->start("web1", soon()).error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(vms_->resume("web1", soon()).error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(vms_->stop("web1").error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(migrate().error().code(), Errc::kFailedPrecondition);
  EXPECT_TRUE(vms_->show("web1"));
}

TEST_F(ServiceTest, WorkerThatDiesAfterCommitLeavesTheVmUnsettled) {
  run_vm("web1");
  spawner_.worker(0).on_migrate = [this](control::Call&, const v1::WorkerMigrateRequest&) -> Result<v1::MigrateEvent> {
    const auto record = registry_->find("web1")->record;
    FVMM_TRY(write_session(directory("web1"), test::session_record(record, v1::ROLE_LEAVING, v1::OUTCOME_OPEN)));
    spawner_.worker(0).end();
    return Error(Errc::kUnavailable, "the worker dies");
  };
  const auto event = migrate();
  ASSERT_TRUE(event) << event.error().message();
  EXPECT_EQ(event->result().result(), "unknown");
  EXPECT_EQ(state("web1"), v1::VM_UNSETTLED);
}

TEST_F(ServiceTest, WorkerThatDiesBeforeLeavingLosesTheVm) {
  run_vm("web1");
  spawner_.worker(0).on_migrate = [this](control::Call&, const v1::WorkerMigrateRequest&) -> Result<v1::MigrateEvent> {
    spawner_.worker(0).end();
    return Error(Errc::kUnavailable, "the worker dies");
  };
  EXPECT_FALSE(migrate());
  ASSERT_TRUE(test::eventually([&] { return state("web1") == v1::VM_LOST; }));
}

TEST_F(ServiceTest, CancelNeedsAMigration) {
  run_vm("web1");
  EXPECT_EQ(migrations_->cancel("web1").error().code(), Errc::kFailedPrecondition);
  spawner_.worker(0).report(v1::VM_MIGRATING);  // as after a restart of fvmmd
  ASSERT_TRUE(test::eventually([&] { return state("web1") == v1::VM_MIGRATING; }));
  EXPECT_TRUE(migrations_->cancel("web1"));
  EXPECT_EQ(vms_->pause("web1", soon()).error().code(), Errc::kFailedPrecondition);
}

class ResolveTest : public ServiceTest {
 protected:
  void SetUp() override {
    ServiceTest::SetUp();
    run_vm("web1");
    script_migration(v1::OUTCOME_OPEN, v1::VM_UNSETTLED, "unknown");
    ASSERT_TRUE(migrate());
    spawner_.worker(0).on_settle = [this](bool resume) -> Result<v1::WorkerInfo> {
      auto session = *read_session(directory("web1"));
      session.set_outcome(resume ? v1::OUTCOME_ABORTED : v1::OUTCOME_STARTED);
      FVMM_TRY(write_session(directory("web1"), session));
      spawner_.worker(0).report(resume ? v1::VM_RUNNING : v1::VM_MOVED);
      return spawner_.worker(0).info();
    };
  }
  Result<v1::ResolveReport> resolve(bool start_here = false, bool discard = false) {
    v1::ResolveRequest request;
    request.set_vm("web1");
    request.set_force_start_here(start_here);
    request.set_force_discard(discard);
    return migrations_->resolve(request);
  }
  void kill_worker() {
    spawner_.worker(0).end();
    ASSERT_TRUE(test::eventually([&] { return !registry_->find("web1")->worker; }));
  }
};

TEST_F(ResolveTest, UnreachablePeerChangesNothing) {
  const auto report = resolve();
  ASSERT_TRUE(report);
  EXPECT_EQ(report->outcome(), "unsettled");
  EXPECT_NE(report->detail().find("connection refused"), std::string::npos);
  EXPECT_EQ(state("web1"), v1::VM_UNSETTLED);
}

TEST_F(ResolveTest, StartedAtThePeerIsMoved) {
  peer_says_ = "started";
  EXPECT_EQ(resolve()->vm().state(), v1::VM_MOVED);
  EXPECT_EQ(registry_->find("web1")->record.moved_to(), "127.0.0.1:7001");
  EXPECT_FALSE(registry_->find("web1")->worker);
  EXPECT_EQ(resolve().error().code(), Errc::kFailedPrecondition);  // nothing left to resolve
}

TEST_F(ResolveTest, RefusedByThePeerRunsHereAgain) {
  peer_says_ = "refused";
  EXPECT_EQ(resolve()->vm().state(), v1::VM_RUNNING);
  EXPECT_EQ(registry_->find("web1")->record.state(), v1::VM_RUNNING);
  EXPECT_TRUE(vms_->pause("web1", soon()));
}

TEST_F(ResolveTest, RefusedByThePeerButTheWorkerDiedIsLost) {
  kill_worker();
  peer_says_ = "refused";
  EXPECT_EQ(resolve()->outcome(), "lost");
  EXPECT_EQ(state("web1"), v1::VM_LOST);
  EXPECT_TRUE(vms_->start("web1", soon()));
}

TEST_F(ResolveTest, ForceIsNeededAndEnoughWithoutAnAnswer) {
  EXPECT_EQ(resolve(true, true).error().code(), Errc::kInvalidArgument);
  EXPECT_EQ(resolve(true, false)->vm().state(), v1::VM_RUNNING);
}

TEST_F(ResolveTest, ForcedDiscardGivesTheVmUp) {
  EXPECT_EQ(resolve(false, true)->vm().state(), v1::VM_MOVED);
  EXPECT_EQ(read_session(directory("web1"))->outcome(), v1::OUTCOME_STARTED);
}

TEST_F(ResolveTest, ForcedStartWithoutMemoryIsRefused) {
  kill_worker();
  EXPECT_EQ(state("web1"), v1::VM_UNSETTLED);
  EXPECT_EQ(resolve(true, false).error().code(), Errc::kFailedPrecondition);
  EXPECT_EQ(state("web1"), v1::VM_UNSETTLED);
}

TEST_F(ResolveTest, WorkerThatWillNotLetGoIsNotKilled) {
  peer_says_ = "started";
  spawner_.worker(0).on_settle = [](bool) -> Result<v1::WorkerInfo> {
    return Error(Errc::kFailedPrecondition, "nothing is unsettled here");
  };
  EXPECT_FALSE(resolve());
  EXPECT_TRUE(registry_->find("web1")->worker->alive());
}

// A second fvmmd over the same directories, as after a restart.
TEST_F(ServiceTest, RestartedDaemonAdoptsWorkersAndEndsWarmOnes) {
  run_vm("web1");
  const auto warm = spawner_.spawn(kShape, soon());
  ASSERT_TRUE(warm);
  std::ofstream(scratch_.path() / "workers" / "dead.sock") << "";
  std::ofstream(scratch_.path() / "workers" / "dead.log") << "";
  auto registry = *Registry::open(scratch_.path(), *ledger_);
  StopSignal stop;
  Supervisor supervisor(*registry, stop);
  const auto adopted = supervisor.adopt_all(scratch_.path() / "workers");
  stop.fire();
  registry->stop();
  supervisor.join();
  EXPECT_TRUE(adopted) << adopted.error().message();
  ASSERT_TRUE(registry->find("web1")->worker);
  EXPECT_TRUE(registry->find("web1")->worker->alive());
  EXPECT_EQ(registry->find("web1")->state(), v1::VM_RUNNING);
  EXPECT_FALSE((*warm)->alive());
  EXPECT_FALSE(std::filesystem::exists(scratch_.path() / "workers" / "dead.sock"));
  EXPECT_FALSE(std::filesystem::exists(scratch_.path() / "workers" / "dead.log"));
}

// fvmmd ended between the start of a VM in its worker and the VM's record.
TEST_F(ServiceTest, AdoptedWorkerWithoutARecordGetsOne) {
  const auto process = spawner_.spawn(kShape, soon());
  ASSERT_TRUE(process);
  spawner_.worker(0).carry(test::vm_record("c-1", v1::VM_RUNNING, kMemory).config(), v1::VM_RUNNING);
  ASSERT_TRUE(supervisor_->adopt_all(scratch_.path() / "workers"));
  ASSERT_TRUE(registry_->find("c-1"));
  EXPECT_TRUE((*process)->alive());
  EXPECT_EQ(vms_->stop("c-1")->state(), v1::VM_STOPPED);
}

}  // namespace
}  // namespace fvmm::daemon
