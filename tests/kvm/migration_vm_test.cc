// Two real VMs in one process and the whole protocol between them. The guest itself says whether it arrived whole.
#include "support/stored_template.h"
#include "support/vm_migration.h"

namespace fvmm {
namespace {

using migration::Mode;

constexpr std::uint64_t kBytes = 64 * kMiB;
constexpr const char* kWorkload = "seed=31 ws=4 rate=2000 beat=20";

/// A peer as fvmmd is one, for one migration: loopback TCP, the listener reads the Hello and hands the socket on.
class TcpHost {
 public:
  explicit TcpHost(const memory::TemplateStore* store)
      : listener_(net::Listener::open({.host = "127.0.0.1", .port = 0}).value()),
        journal_(std::make_shared<testing::FakeDisk>()),
        make_guest_(test::replica_maker(store)),
        thread_([this] { serve(); }) {}
  ~TcpHost() { join(); }
  TcpHost(const TcpHost&) = delete;
  TcpHost& operator=(const TcpHost&) = delete;
  TcpHost(TcpHost&&) = delete;
  TcpHost& operator=(TcpHost&&) = delete;

  [[nodiscard]] net::Endpoint endpoint() const { return listener_.bound(); }
  std::unique_ptr<migration::Guest> take_guest() {
    join();
    return std::move(guest_);
  }

 private:
  struct Accepted {
    std::unique_ptr<net::Stream> stream;
    v1::PeerHello hello;
  };
  Result<Accepted> accept() {
    const Deadline deadline = Deadline::after(std::chrono::seconds(30));
    Accepted one;
    one.stream = FVMM_TRY(net::Channel::adopt(FVMM_TRY(listener_.accept(deadline))));
    FVMM_TRY(net::receive_message(*one.stream, net::FrameType::kHello, one.hello, deadline));
    return one;
  }
  void serve() {
    auto first = accept();
    if (!first) return;
    const std::uint32_t connections = first->hello.connections();
    migration::DestinationSession::Environment environment;
    environment.make_guest = make_guest_;
    environment.journal = &journal_;
    environment.boot_id = vmm::read_boot_id().value();
    migration::DestinationSession session(first->hello, std::move(first->stream), std::move(environment));
    std::thread data([&] {
      for (std::uint32_t i = 0; i < connections; ++i) {
        auto next = accept();
        if (!next) return session.cancel();
        EXPECT_TRUE(session.add_connection({next->hello.index(), std::move(next->stream)}).ok());
      }
    });
    auto guest = session.run();
    data.join();
    if (guest) guest_ = std::move(*guest);
    if (!guest) ADD_FAILURE() << guest.error().message();
  }
  void join() {
    if (thread_.joinable()) thread_.join();
  }

  net::Listener listener_;
  testing::FakeJournal journal_;
  migration::MakeGuest make_guest_;
  std::unique_ptr<migration::Guest> guest_;  // thread_, until join()
  std::thread thread_;
};

v1::MigrateResult migrate_by_tcp(std::unique_ptr<migration::Guest>& guest, Mode mode,
                                 const memory::TemplateStore* store, unsigned connections) {
  TcpHost host(store);
  migration::TcpTransport transport(host.endpoint());
  return test::migrate(
      guest, mode, transport, [&] { return host.take_guest(); }, connections);
}

class VmMigration : public ::testing::Test {
 protected:
  void SetUp() override { FVMM_NEEDS_KVM(); }
  void start(const std::string& guest, const std::string& options, const std::string& until) {
    auto made = test::running_guest(guest, kBytes, options);
    ASSERT_TRUE(made.ok()) << made.error().message();
    guest_ = std::move(*made);
    test::wait_for_output(vm(), until);
  }
  void start_workload() { start("workload.elf", kWorkload, "HB n=2 "); }
  void put_on_template() {
    store_.emplace(memory::TemplateStore::open(directory_.path() / "store").value());
    const Status status = test::put_on_template(*guest_, *store_, "golden");
    ASSERT_TRUE(status.ok()) << status.error().message();
  }
  vmm::Vm& vm() { return test::vm_of(*guest_); }

  testing::TempDir directory_;
  std::optional<memory::TemplateStore> store_;
  std::unique_ptr<migration::Guest> guest_;
};

TEST_F(VmMigration, PrecopyOverPipes) {
  start_workload();
  const auto result = test::migrate_by_pipe(guest_, Mode::kPrecopy);
  ASSERT_EQ(result.result(), "completed") << result.error();
  EXPECT_EQ(test::verified(vm()), "");
}

TEST_F(VmMigration, PrecopyOverTcpWithOneAndWithFourConnections) {
  start_workload();
  for (const unsigned connections : {1U, 4U}) {
    const auto result = migrate_by_tcp(guest_, Mode::kPrecopy, nullptr, connections);
    ASSERT_EQ(result.result(), "completed") << result.error();
    EXPECT_EQ(test::verified(vm()), "") << connections;
  }
}

TEST_F(VmMigration, SuspendOverATemplateSendsTheDelta) {
  start_workload();
  put_on_template();
  test::wait_for_next(vm(), "HB ");
  const auto result = migrate_by_tcp(guest_, Mode::kSuspend, &*store_, 1);
  ASSERT_EQ(result.result(), "completed") << result.error();
  EXPECT_GT(result.pages_sent(), 0U);
  EXPECT_LT(result.pages_sent(), kBytes / kPageBytes / 4) << "the template was there already";
  EXPECT_EQ(test::verified(vm()), "");
  const auto report = store_->verify("golden");
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->pages_bad, 0U) << report->detail;
}

TEST_F(VmMigration, LiveOverATemplateSendsTheDeltaInRounds) {
  start_workload();
  put_on_template();
  test::wait_for_next(vm(), "HB ");
  for (const unsigned connections : {1U, 3U}) {
    const auto result = migrate_by_tcp(guest_, Mode::kLive, &*store_, connections);
    ASSERT_EQ(result.result(), "completed") << result.error();
    EXPECT_GE(result.rounds(), 1U);
    EXPECT_EQ(test::verified(vm()), "");
  }
}

TEST_F(VmMigration, GuestHeldBackGoesOnAndVerifies) {
  start_workload();
  for (const unsigned percent : {20U, 99U, 50U, 0U}) {
    vm().throttle(percent);
    test::wait_for_next(vm(), "HB ");
    ASSERT_TRUE(vm().pause());
    ASSERT_TRUE(vm().resume());
  }
  EXPECT_EQ(test::verified(vm()), "");
}

// What is a delta of the template stays one: after each move the way back sends what differs, nothing is lost or stale.
TEST_F(VmMigration, TenTimesBackAndForth) {
  start_workload();
  put_on_template();
  std::uint64_t last_step = 0;
  for (int move = 0; move < 10; ++move) {
    const auto result = test::migrate_by_pipe(guest_, Mode::kSuspend, &*store_);
    ASSERT_EQ(result.result(), "completed") << "move " << move << ": " << result.error();
    EXPECT_EQ(test::verified(vm()), "") << "move " << move;
    const auto beats = test::heartbeats(vm().serial_output()->recent());
    ASSERT_FALSE(beats.empty());
    EXPECT_GT(beats.back().step, last_step) << "it goes on where it was";
    last_step = beats.back().step;
  }
  EXPECT_EQ(guest_->fencing_token, 10U);
}

TEST_F(VmMigration, RegistersArriveWholeInTheMiddleOfTheRun) {
  start("regs.elf", "beat=20", "REGS ok n=2 ");
  for (int move = 0; move < 5; ++move) {
    const auto result = test::migrate_by_pipe(guest_, Mode::kPrecopy);
    ASSERT_EQ(result.result(), "completed") << result.error();
    test::wait_for_next(vm(), "REGS ok");
    test::wait_for_next(vm(), "REGS ok");
    EXPECT_EQ(test::complaint(vm().serial_output()->recent()), "");
  }
}

TEST_F(VmMigration, ASleepingGuestWakesUpOverThere) {
  start("idle.elf", "tick=20", "TICK n=2 ");
  const auto result = test::migrate_by_pipe(guest_, Mode::kPrecopy);
  ASSERT_EQ(result.result(), "completed") << result.error();
  for (int i = 0; i < 3; ++i) test::wait_for_next(vm(), "TICK");
  EXPECT_EQ(test::complaint(vm().serial_output()->recent()), "");
}

TEST_F(VmMigration, GuestTimeDoesNotGoBack) {
  start_workload();
  const auto before = test::field(test::wait_for_next(vm(), "HB "), "ms").value_or(0);
  ASSERT_EQ(test::migrate_by_pipe(guest_, Mode::kPrecopy).result(), "completed");
  test::wait_for_next(vm(), "HB ");  // the first line over there may be the rest of one from here
  EXPECT_GT(test::field(test::wait_for_next(vm(), "HB "), "ms").value_or(0), before);
}

TEST_F(VmMigration, AFailureBeforeCommitLeavesTheGuestRunningHere) {
  start_workload();
  put_on_template();
  for (const char* step : {"hello", "pause", "state", "commit"}) {
    const auto result = test::migrate_by_pipe(guest_, Mode::kSuspend, &*store_, 1, [&](std::string_view now) -> Status {
      return now == step ? Status(Error(Errc::kAborted, "by the test")) : Status();
    });
    EXPECT_EQ(result.result(), "aborted") << step;
    EXPECT_FALSE(guest_->machine->paused()) << step;
    EXPECT_EQ(test::verified(vm()), "") << step;
  }
  ASSERT_EQ(test::migrate_by_pipe(guest_, Mode::kSuspend, &*store_).result(), "completed");
  EXPECT_EQ(test::verified(vm()), "");
}

TEST_F(VmMigration, AGuestThatStoppedByItselfIsNotMoved) {
  test::StopLatch latch;
  auto booted = test::boot_vm("workload.elf", kBytes, "fill=0 ws=1 beat=20", latch.callback());
  ASSERT_TRUE(booted.ok()) << booted.error().message();
  ASSERT_TRUE((*booted)->resume().ok());
  test::wait_for_output(**booted, "HB n=1 ");
  guest_ = test::guest_of(std::move(*booted), test::vm_config(kBytes));
  test::type(vm(), "q");
  latch.wait();
  const auto result = test::migrate_by_pipe(guest_, Mode::kPrecopy);
  EXPECT_EQ(result.result(), "aborted");
  EXPECT_NE(result.error().find("stopped by itself"), std::string::npos) << result.error();
  guest_.reset();  // before the latch that it tells
}

}  // namespace
}  // namespace fvmm
