// The peer listener over loopback: real connections, fake workers in this process.
#include <gtest/gtest.h>

#include "base/file.h"
#include "daemon/migration_service.h"
#include "daemon/peer_listener.h"
#include "migration/transport.h"
#include "net/frame.h"
#include "support/daemon_fakes.h"

namespace fvmm::daemon {
namespace {

constexpr std::uint64_t kMemory = 64 * kMiB;

Deadline soon() {
  return Deadline::after(std::chrono::seconds(20));
}

class PeerTest : public testing::Test {
 protected:
  void SetUp() override {
    settled_ = *SessionLedger::open(scratch_.path() / "sessions", 100);
    refused_ = *SessionLedger::open(scratch_.path() / "sessions-refused", 2);
    registry_ = *Registry::open(scratch_.path(), *settled_);
    store_ = std::make_unique<memory::TemplateStore>(*memory::TemplateStore::open(scratch_.path() / "templates"));
    pool_ = *WorkerPool::open(spawner_, {.per_recent_shape = 0});
    supervisor_ = std::make_unique<Supervisor>(*registry_, stop_);
    sessions_ = std::make_unique<IncomingSessions>(*registry_, *settled_, *refused_);
    replicas_ = std::make_unique<Replicas>(*Replicas::open(scratch_.path() / "replicas", kGiB));
    listener_ = *PeerListener::open({"127.0.0.1", 0}, {*registry_, *pool_, *supervisor_, *store_, *sessions_,
                                                       *replicas_, stop_, scratch_.path(), false});
    listener_->start();
    hello_.set_version(migration::kPeerVersion);
    hello_.set_purpose(v1::MIGRATE);
    hello_.set_session(Id::random().raw());
    hello_.set_mode("suspend");
    hello_.set_fencing_token(2);
    hello_.set_from("127.0.0.1:7000");
    hello_.set_timeout_ms(20'000);
    vm_ = test::vm_record("web1", v1::VM_RUNNING, kMemory);
    *hello_.mutable_vm() = vm_.config();
  }
  void TearDown() override {
    stop_.fire();
    registry_->stop();
    listener_->join();
    supervisor_->join();
  }
  std::unique_ptr<net::Channel> say(const v1::PeerHello& hello) {
    auto channel = net::Channel::connect(listener_->bound(), soon());
    EXPECT_TRUE(channel);
    EXPECT_TRUE(net::send_message(**channel, net::FrameType::kHello, hello, soon()));
    return std::move(*channel);
  }
  v1::PeerMessage hear(net::Channel& channel) {
    v1::PeerMessage message;
    const Status got = net::receive_message(channel, net::FrameType::kControl, message, soon());
    EXPECT_TRUE(got) << got.error().message();
    return message;
  }
  v1::PeerMessage ask(const v1::PeerHello& hello) {
    const auto channel = say(hello);
    return hear(*channel);
  }
  /// "unknown" while an arrival is still ending here: then a peer asks again.
  bool answered(const std::string& outcome) {
    return test::eventually([&] { return query(hello_.session()).outcome() == outcome; });
  }
  v1::SessionAnswer query(const std::string& session) {
    v1::PeerHello question;
    question.set_version(migration::kPeerVersion);
    question.set_purpose(v1::QUERY_SESSION);
    question.set_session(session);
    const auto message = ask(question);
    EXPECT_EQ(message.kind(), v1::PEER_ANSWER);
    return message.answer();
  }
  Status write_outcome(const v1::WorkerReceiveRequest& request, v1::SessionOutcome outcome) {
    v1::SessionRecord session = test::session_record(vm_, v1::ROLE_MAY_START, outcome);
    session.set_session(request.hello().session());
    return write_session(request.vm_directory(), session);
  }
  void say_kind(net::Channel& channel, v1::PeerKind kind) {
    v1::PeerMessage message;
    message.set_kind(kind);
    EXPECT_TRUE(net::send_message(channel, net::FrameType::kControl, message, soon()));
  }
  using Receive =
      std::function<Result<v1::WorkerInfo>(test::FakeWorker&, const v1::WorkerReceiveRequest&, net::Channel&)>;
  void worker_receives(Receive receive) {
    spawner_.prepare = [receive = std::move(receive)](test::FakeWorker& worker) {
      worker.on_receive = [&worker, receive](control::Call&, const v1::WorkerReceiveRequest& request,
                                             UniqueFd connection) -> Result<v1::WorkerInfo> {
        worker.carry(request.hello().vm(), v1::VM_INCOMING);
        const auto channel = FVMM_TRY(net::Channel::adopt(std::move(connection)));
        return receive(worker, request, *channel);
      };
    };
  }
  /// A worker that runs the VM.
  Receive runs() {
    return [this](test::FakeWorker& worker, const v1::WorkerReceiveRequest& request,
                  net::Channel& channel) -> Result<v1::WorkerInfo> {
      FVMM_TRY(write_outcome(request, v1::OUTCOME_STARTED));
      worker.report(v1::VM_RUNNING);
      say_kind(channel, v1::PEER_STARTED);
      return worker.info();
    };
  }
  bool rests(const std::string& name, v1::VmState state) {
    const auto vm = registry_->find(name);
    return vm && vm->busy.empty() && vm->state() == state;
  }

  test::ScratchDirectory scratch_;
  v1::PeerHello hello_;
  v1::VmRecord vm_;  // workers read it until they end
  StopSignal stop_;
  test::FakeSpawner spawner_{scratch_.path() / "workers"};
  std::unique_ptr<SessionLedger> settled_;
  std::unique_ptr<SessionLedger> refused_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<memory::TemplateStore> store_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<Supervisor> supervisor_;
  std::unique_ptr<IncomingSessions> sessions_;
  std::unique_ptr<Replicas> replicas_;
  std::unique_ptr<PeerListener> listener_;
};

TEST_F(PeerTest, ListensOnLoopbackOnly) {
  const auto open = PeerListener::open({"192.0.2.1", 0}, {*registry_, *pool_, *supervisor_, *store_, *sessions_,
                                                          *replicas_, stop_, scratch_.path(), false});
  EXPECT_EQ(open.error().code(), Errc::kInvalidArgument);
}

TEST_F(PeerTest, OtherVersionIsRejectedNamingBoth) {
  hello_.set_version(99);
  const auto message = ask(hello_);
  EXPECT_EQ(message.kind(), v1::PEER_REJECTED);
  EXPECT_EQ(message.code(), static_cast<std::uint32_t>(Errc::kFailedPrecondition));
  EXPECT_NE(message.reason().find("99"), std::string::npos);
  EXPECT_NE(message.reason().find("ours, " + std::to_string(migration::kPeerVersion)), std::string::npos);
}

TEST_F(PeerTest, UnknownPurposeIsRejected) {
  hello_.set_purpose(v1::HELLO_NONE);
  EXPECT_EQ(ask(hello_).kind(), v1::PEER_REJECTED);
}

// Asked before a replication begins: a recovery that could only fail is refused while the source is there.
TEST_F(PeerTest, AVmWhoseDisksAreNotHereIsNotReplicatedToHere) {
  const std::string file = (scratch_.path() / "disk").string();
  v1::DiskConfig& disk = *hello_.mutable_vm()->add_disks();
  disk.set_path(file);
  disk.set_readonly(true);
  disk.set_shared(true);
  hello_.mutable_vm()->add_nets()->set_socket((scratch_.path() / "nobody").string());  // a recovery may place it
  hello_.set_purpose(v1::CHECK_REPLICA);
  const auto refused = ask(hello_);
  EXPECT_EQ(refused.kind(), v1::PEER_REJECTED);
  EXPECT_EQ(refused.code(), static_cast<std::uint32_t>(Errc::kNotFound));
  EXPECT_NE(refused.reason().find("disk " + file + " is missing"), std::string::npos) << refused.reason();
  disk.set_path("disk");
  EXPECT_EQ(ask(hello_).code(), static_cast<std::uint32_t>(Errc::kFailedPrecondition)) << "the question is known";
  disk.set_path(file);
  ASSERT_TRUE(replace_file(file, std::string(4096, 'x')));
  const auto fits = ask(hello_);
  EXPECT_EQ(fits.kind(), v1::PEER_ANSWER) << fits.reason();
  EXPECT_FALSE(replicas_->find("web1")) << "a question leaves nothing";
}

TEST_F(PeerTest, GarbageEndsTheConnectionAndNothingElse) {
  auto channel = net::Channel::connect(listener_->bound(), soon());
  ASSERT_TRUE(channel);
  const std::string garbage(64, 'G');
  ASSERT_TRUE((*channel)->send(std::as_bytes(std::span(garbage)), soon()));
  std::array<std::byte, 1> byte{};
  EXPECT_EQ((*channel)->receive(byte, soon()).error().code(), Errc::kUnavailable);
  EXPECT_EQ(query(Id::random().raw()).outcome(), "refused");
}

TEST_F(PeerTest, VmThatComesInRunsHereAndIsWatched) {
  worker_receives(runs());
  const auto channel = say(hello_);
  EXPECT_EQ(hear(*channel).kind(), v1::PEER_STARTED);
  ASSERT_TRUE(test::eventually([&] { return rests("web1", v1::VM_RUNNING); }));
  EXPECT_EQ(registry_->find("web1")->record.state(), v1::VM_RUNNING);
  EXPECT_EQ(registry_->find("web1")->record.fencing_token(), 2U);
  EXPECT_TRUE(answered("started"));
  spawner_.worker(0).end();
  EXPECT_TRUE(test::eventually([&] { return rests("web1", v1::VM_LOST); }));
  EXPECT_TRUE(answered("started"));  // also when the worker is gone
}

TEST_F(PeerTest, SecondVmOfThatNameIsRejectedBeforeAWorkerIsTaken) {
  auto taken = registry_->reserve({test::vm_record("web1", v1::VM_CREATED)}, "create");
  ASSERT_TRUE(taken && taken->front().change([](v1::VmRecord&) {}));
  const auto message = ask(hello_);
  EXPECT_EQ(message.kind(), v1::PEER_REJECTED);
  EXPECT_EQ(message.code(), static_cast<std::uint32_t>(Errc::kAlreadyExists));
  EXPECT_EQ(spawner_.spawned(), 0U);
}

TEST_F(PeerTest, MissingTemplateIsRejectedWithTheFix) {
  hello_.mutable_template_()->set_id(Id::random().raw());
  hello_.mutable_template_()->set_digest(Id::random().raw());
  hello_.mutable_template_()->set_name("t1");
  const auto message = ask(hello_);
  EXPECT_EQ(message.code(), static_cast<std::uint32_t>(Errc::kNotFound));
  EXPECT_NE(message.reason().find("fvmmctl template push t1"), std::string::npos);
}

TEST_F(PeerTest, TestHooksInAHelloNeedTestHooksHere) {
  hello_.set_test_hook("fail:load");
  EXPECT_EQ(ask(hello_).code(), static_cast<std::uint32_t>(Errc::kPermissionDenied));
}

TEST_F(PeerTest, FailedArrivalLeavesNothingAndIsAnsweredAsRefused) {
  worker_receives(
      [this](test::FakeWorker&, const v1::WorkerReceiveRequest& request, net::Channel&) -> Result<v1::WorkerInfo> {
        FVMM_TRY(write_outcome(request, v1::OUTCOME_REFUSED));
        return Error(Errc::kUnavailable, "the source is gone");
      });
  const auto channel = say(hello_);
  ASSERT_TRUE(test::eventually([&] { return spawner_.spawned() == 1 && !registry_->find("web1"); }));
  EXPECT_TRUE(answered("refused"));
  EXPECT_EQ(ask(hello_).kind(), v1::PEER_REJECTED);  // this session can never come in again
  EXPECT_FALSE(std::filesystem::exists(scratch_.path() / "vms" / Id::from_bytes(hello_.vm().id())->hex()));
}

TEST_F(PeerTest, FailedReturnRestoresTheMovedRecord) {
  vm_.set_state(v1::VM_MOVED);
  vm_.set_moved_to("127.0.0.1:7000");
  {
    auto old = registry_->reserve({vm_}, "create");
    ASSERT_TRUE(old && old->front().change([](v1::VmRecord&) {}));
  }
  worker_receives(
      [](test::FakeWorker& worker, const v1::WorkerReceiveRequest&, net::Channel&) -> Result<v1::WorkerInfo> {
        worker.report(v1::VM_FAILED, "no AVX here");
        return Error(Errc::kFailedPrecondition, "no AVX here");
      });
  const auto channel = say(hello_);
  ASSERT_TRUE(test::eventually([&] { return spawner_.spawned() == 1 && rests("web1", v1::VM_MOVED); }));
  EXPECT_EQ(registry_->find("web1")->record.SerializeAsString(), vm_.SerializeAsString());
}

TEST_F(PeerTest, WorkerThatDiesAfterMayStartLeavesAnUnsettledVmAndAnUnknownAnswer) {
  worker_receives([this](test::FakeWorker& worker, const v1::WorkerReceiveRequest& request,
                         net::Channel&) -> Result<v1::WorkerInfo> {
    FVMM_TRY(write_outcome(request, v1::OUTCOME_OPEN));
    worker.end();
    return Error(Errc::kUnavailable, "dies");
  });
  const auto channel = say(hello_);
  ASSERT_TRUE(test::eventually([&] { return rests("web1", v1::VM_UNSETTLED); }));
  EXPECT_EQ(query(hello_.session()).outcome(), "unknown");
  hello_.set_session(Id::random().raw());
  hello_.set_fencing_token(3);
  EXPECT_EQ(ask(hello_).code(), static_cast<std::uint32_t>(Errc::kFailedPrecondition));
}

TEST_F(PeerTest, QuestionDuringTheSessionIsTheWorkersToAnswer) {
  std::atomic<bool> asked = false;
  worker_receives([&](test::FakeWorker& worker, const v1::WorkerReceiveRequest& request,
                      net::Channel& channel) -> Result<v1::WorkerInfo> {
    worker.answer_with([&](const v1::SessionQuery&) {
      asked = true;
      v1::SessionAnswer answer;
      answer.set_outcome("refused");
      return answer;
    });
    FVMM_TRY(write_outcome(request, v1::OUTCOME_OPEN));
    say_kind(channel, v1::PEER_READY);
    if (!test::eventually([&] { return asked.load(); })) return Error(Errc::kInternal, "nobody asked");
    FVMM_TRY(write_outcome(request, v1::OUTCOME_REFUSED));
    return Error(Errc::kAborted, "refused for a question");
  });
  const auto channel = say(hello_);
  EXPECT_EQ(hear(*channel).kind(), v1::PEER_READY);
  EXPECT_EQ(query(hello_.session()).outcome(), "refused");
  EXPECT_TRUE(test::eventually([&] { return !registry_->find("web1"); }));
}

TEST_F(PeerTest, DataConnectionReachesTheSessionsWorker) {
  worker_receives([&](test::FakeWorker& worker, const v1::WorkerReceiveRequest& request,
                      net::Channel& channel) -> Result<v1::WorkerInfo> {
    if (!test::eventually([&] { return worker.calls("AddConnection") == 1; })) return Error(Errc::kInternal, "no data");
    return runs()(worker, request, channel);
  });
  v1::PeerHello data = hello_;
  data.set_purpose(v1::DATA);
  const auto early = say(data);  // before its session
  const auto channel = say(hello_);
  EXPECT_EQ(hear(*channel).kind(), v1::PEER_STARTED);
}

TEST_F(PeerTest, UnknownSessionIsRefusedForGoodAndRefusalsAreBounded) {
  const std::string first = Id::random().raw();
  EXPECT_EQ(query(first).outcome(), "refused");
  hello_.set_session(first);
  EXPECT_EQ(ask(hello_).kind(), v1::PEER_REJECTED);
  EXPECT_EQ(query(Id::random().raw()).outcome(), "refused");
  EXPECT_EQ(query(Id::random().raw()).outcome(), "unknown");  // one past the limit: not recorded, so not promised
  EXPECT_EQ(query(first).outcome(), "refused");
}

TEST_F(PeerTest, SourceAnswersForASessionThatLeftHere) {
  vm_.set_state(v1::VM_MOVED);
  auto left = registry_->reserve({vm_}, "create");
  ASSERT_TRUE(left && left->front().change([](v1::VmRecord&) {}));
  auto session = test::session_record(vm_, v1::ROLE_LEAVING, v1::OUTCOME_OPEN);
  const auto directory = registry_->find("web1")->directory;
  ASSERT_TRUE(write_session(directory, session));
  EXPECT_EQ(query(session.session()).outcome(), "unknown");
  session.set_outcome(v1::OUTCOME_ABORTED);
  ASSERT_TRUE(write_session(directory, session));
  EXPECT_EQ(query(session.session()).outcome(), "refused");
}

// Its disk did not take the last record: the worker is asked, as a destination's is.
TEST_F(PeerTest, SourcesLivingWorkerAnswersForAnOpenDeparture) {
  auto left = registry_->reserve({vm_}, "create");
  ASSERT_TRUE(left && left->front().change([](v1::VmRecord&) {}));
  auto taken = spawner_.spawn({}, Deadline::after(std::chrono::seconds(10)));
  ASSERT_TRUE(taken);
  left->front().attach(*taken, v1::WorkerInfo(), 0);
  const auto session = test::session_record(vm_, v1::ROLE_LEAVING, v1::OUTCOME_OPEN);
  ASSERT_TRUE(write_session(registry_->find("web1")->directory, session));
  EXPECT_EQ(query(session.session()).outcome(), "unknown") << "it does not know the session";
  spawner_.worker(0).answer_with([&](const v1::SessionQuery& asked) {
    EXPECT_EQ(asked.session(), session.session());
    v1::SessionAnswer answer;
    answer.set_outcome("started");
    return answer;
  });
  EXPECT_EQ(query(session.session()).outcome(), "started");
}

TEST_F(PeerTest, AskPeerGetsTheListenersAnswer) {
  auto session = test::session_record(vm_, v1::ROLE_LEAVING, v1::OUTCOME_OPEN);
  session.set_peer(listener_->bound().text());
  const auto answer = ask_peer(session);
  ASSERT_TRUE(answer) << answer.error().message();
  EXPECT_EQ(answer->outcome(), "refused");
  session.set_peer("192.0.2.1:7000");
  EXPECT_EQ(ask_peer(session).error().code(), Errc::kInvalidArgument);
}

TEST_F(PeerTest, TwoSessionsForOneVmExcludeEachOther) {
  std::atomic<bool> go = false;
  worker_receives([&](test::FakeWorker& worker, const v1::WorkerReceiveRequest& request,
                      net::Channel& channel) -> Result<v1::WorkerInfo> {
    say_kind(channel, v1::PEER_READY);
    test::eventually([&] { return go.load(); });
    return runs()(worker, request, channel);
  });
  const auto first = say(hello_);
  EXPECT_EQ(hear(*first).kind(), v1::PEER_READY);
  EXPECT_EQ(ask(hello_).code(), static_cast<std::uint32_t>(Errc::kAlreadyExists));  // the same session again
  v1::PeerHello other = hello_;
  other.set_session(Id::random().raw());
  EXPECT_EQ(ask(other).code(), static_cast<std::uint32_t>(Errc::kAlreadyExists));  // the same VM in another one
  go = true;
  EXPECT_EQ(hear(*first).kind(), v1::PEER_STARTED);
}

}  // namespace
}  // namespace fvmm::daemon
