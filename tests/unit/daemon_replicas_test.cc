// What a host knows of the VMs that are replicated to it: how many at once, what an ended replication leaves, and who
// is told of the end.
#include "daemon/replicas.h"

#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <deque>
#include <fstream>

#include "daemon/replica_stops.h"
#include "net/pipe_stream.h"
#include "support/stored_template.h"

namespace fvmm::daemon {
namespace {

using Forgotten = Replicas::Forgotten;

constexpr std::uint64_t kRoom = 256 * kMiB;

v1::PeerHello hello_of(char id, std::uint64_t memory_bytes, std::uint64_t token = 1, char replication = 'r') {
  v1::PeerHello hello;
  hello.mutable_vm()->set_id(std::string(16, id));
  hello.mutable_vm()->set_name(std::string("vm-") + id);
  hello.mutable_vm()->set_memory_bytes(memory_bytes);
  hello.set_fencing_token(token);
  hello.set_from("127.0.0.1:7000");
  if (replication != 0) hello.set_replication(std::string(16, replication));
  return hello;
}

Id id_of(const v1::PeerHello& hello) {
  return *Id::from_bytes(hello.vm().id());
}

class ReplicasTest : public ::testing::Test {
 protected:
  void SetUp() override { spdlog::default_logger_raw()->set_level(spdlog::level::off); }
  void open() {
    replicas_.reset();
    auto opened = Replicas::open(directory_.path(), kRoom);
    ASSERT_TRUE(opened.ok()) << opened.error().message();
    replicas_.emplace(std::move(*opened));
  }
  Result<Replicas::Session> begin(const v1::PeerHello& hello) {
    streams_.push_back(net::PipeStream::make({}, {}).first);
    return replicas_->begin(hello, *streams_.back());
  }
  Result<std::uint64_t> recover(const v1::PeerHello& hello, std::uint64_t token_seen) {
    return replicas_->recover(
        id_of(hello), [&] { return token_seen; }, Deadline::after(std::chrono::seconds(20)));
  }
  Forgotten forget(const v1::PeerHello& hello, int* dropped = nullptr) {
    const auto done = replicas_->forget(hello, [&] {
      if (dropped != nullptr) ++*dropped;
    });
    EXPECT_TRUE(done.ok()) << (done ? "" : done.error().message());
    return done.value_or(Forgotten::kSuperseded);
  }

  testing::TempDir directory_{"/dev/shm"};  // thousands of fsyncs
  std::deque<std::unique_ptr<net::Stream>> streams_;
  std::optional<Replicas> replicas_;
};

TEST_F(ReplicasTest, StagingIsAdmittedInSumUpToTheLimitAndNotOnePageMore) {
  open();
  const auto first = begin(hello_of('a', 128 * kMiB));
  ASSERT_TRUE(first.ok());
  const auto over = begin(hello_of('b', 128 * kMiB + kPageBytes));
  ASSERT_FALSE(over.ok());
  EXPECT_EQ(over.error().code(), Errc::kResourceExhausted);
  for (const auto* part : {"256", "128", "1 other", "vm-b", "--replica-staging"}) {
    EXPECT_NE(over.error().message().find(part), std::string::npos) << part << ": " << over.error().message();
  }
  EXPECT_FALSE(replicas_->find(id_of(hello_of('b', 0))).ok()) << "nothing was kept of it";
  const auto at = begin(hello_of('b', 128 * kMiB));
  EXPECT_TRUE(at.ok());
}

TEST_F(ReplicasTest, StagingIsFreeAgainWhenTheSessionEnds) {
  open();
  {
    const auto first = begin(hello_of('a', kRoom));
    ASSERT_TRUE(first.ok());
    EXPECT_FALSE(begin(hello_of('b', kPageBytes)).ok());
  }
  EXPECT_TRUE(begin(hello_of('b', kRoom)).ok());
  EXPECT_FALSE(begin(hello_of('c', kRoom + kPageBytes)).ok()) << "one VM alone is too large, too";
}

TEST_F(ReplicasTest, AnEndedReplicationIsNoReplicaAnyMoreAlsoAfterARestart) {
  open();
  const auto hello = hello_of('a', kMiB, 5);
  ASSERT_TRUE(begin(hello).ok());
  int dropped = 0;
  EXPECT_EQ(forget(hello, &dropped), Forgotten::kYes);
  EXPECT_EQ(forget(hello, &dropped), Forgotten::kYes) << "the source has not heard the first answer";
  EXPECT_EQ(dropped, 2);
  for (int life = 0; life < 2; ++life) {
    const auto found = replicas_->find(std::string("vm-a"));
    ASSERT_FALSE(found.ok());
    EXPECT_EQ(found.error().code(), Errc::kNotFound);
    EXPECT_NE(found.error().message().find("ended"), std::string::npos) << found.error().message();
    EXPECT_EQ(replicas_->find(id_of(hello)).error().code(), Errc::kNotFound);
    EXPECT_EQ(recover(hello, 5).error().code(), Errc::kNotFound);
    open();
  }
}

TEST_F(ReplicasTest, NothingOlderThanTheEndComesBack) {
  open();
  const auto hello = hello_of('a', kMiB, 5);
  ASSERT_TRUE(begin(hello).ok());
  ASSERT_EQ(forget(hello), Forgotten::kYes);
  for (int life = 0; life < 2; ++life) {
    const auto same = begin(hello);
    EXPECT_EQ(same.error().code(), Errc::kAborted) << "a Hello that was on its way";
    const auto stale = begin(hello_of('a', kMiB, 4, 's'));
    ASSERT_FALSE(stale.ok());
    EXPECT_EQ(stale.error().code(), Errc::kAborted);
    EXPECT_NE(stale.error().message().find("token 5"), std::string::npos) << stale.error().message();
    open();
  }
  EXPECT_TRUE(begin(hello_of('a', kMiB, 5, 's')).ok()) << "the same right, another replication";
  EXPECT_TRUE(replicas_->find(id_of(hello)).ok());
  EXPECT_TRUE(begin(hello_of('a', kMiB, 6, 't')).ok());
}

TEST_F(ReplicasTest, ALateWordOfTheEndLeavesALaterReplicationAlone) {
  open();
  ASSERT_TRUE(begin(hello_of('a', kMiB, 5, 'r')).ok());
  const auto later = begin(hello_of('a', kMiB, 5, 's'));
  ASSERT_TRUE(later.ok());
  int dropped = 0;
  EXPECT_EQ(forget(hello_of('a', kMiB, 5, 'r'), &dropped), Forgotten::kSuperseded);
  EXPECT_EQ(dropped, 0);
  EXPECT_TRUE(replicas_->find(id_of(hello_of('a', 0))).ok());
}

TEST_F(ReplicasTest, SourceOfARecoveredVmIsToldAndWhatRunsHereStays) {
  open();
  const auto hello = hello_of('a', kMiB, 5);
  ASSERT_TRUE(begin(hello).ok());
  EXPECT_EQ(recover(hello, 5).value_or(0), 6U);
  int dropped = 0;
  EXPECT_EQ(forget(hello, &dropped), Forgotten::kRecovered);
  EXPECT_EQ(dropped, 0);
  EXPECT_TRUE(replicas_->find(id_of(hello)).ok());
  // It came back to its source by a hand-over, was replicated anew, and that has ended: who is fenced stays known.
  const auto newer = hello_of('a', kMiB, 7, 's');
  ASSERT_TRUE(begin(newer).ok());
  EXPECT_EQ(forget(newer, &dropped), Forgotten::kYes);
  EXPECT_EQ(dropped, 1);
  open();
  bool ran = false;
  EXPECT_FALSE(replicas_->unless_recovered(id_of(hello), 6, [&] { ran = true; }));
  EXPECT_FALSE(ran);
}

TEST_F(ReplicasTest, EndedOnesAreRememberedUpToTheLimitAndThenTheOldestGoes) {
  open();
  const auto numbered = [](std::uint64_t n) {
    auto hello = hello_of('a', kMiB, 5);
    std::string id(16, 0);
    std::memcpy(id.data(), &n, sizeof n);
    id.back() = 1;
    hello.mutable_vm()->set_id(id);
    return hello;
  };
  for (std::uint64_t n = 0; n < kReplicaStopsMax; ++n) ASSERT_EQ(forget(numbered(n)), Forgotten::kYes);
  EXPECT_FALSE(begin(numbered(0)).ok()) << "at the limit all are known";
  ASSERT_EQ(forget(numbered(kReplicaStopsMax)), Forgotten::kYes);
  EXPECT_TRUE(begin(numbered(0)).ok()) << "the oldest made room";
  EXPECT_FALSE(begin(numbered(1)).ok());
  EXPECT_FALSE(begin(numbered(kReplicaStopsMax)).ok());
}

/// The source's side: a peer that answers as it is told.
class ReplicaStopsTest : public ::testing::Test {
 protected:
  using Told = ReplicaStops::Told;
  void SetUp() override { spdlog::default_logger_raw()->set_level(spdlog::level::off); }
  void open() {
    stops_.reset();
    ReplicaStops::Parts parts;
    parts.directory = directory_.path();
    parts.first = std::chrono::milliseconds(1);
    parts.tell = [this](const v1::ReplicaStop&) -> Result<v1::PeerMessage> {
      ++attempts_;
      if (unreachable_) return Error(Errc::kUnavailable, "no route");
      v1::PeerMessage message;
      message.set_kind(answer_);
      message.set_code(code_);
      message.set_reason("because");
      return message;
    };
    parts.on_recovered = [this](const v1::ReplicaStop& stop) { recovered_ = stop.name() == "web"; };
    auto opened = ReplicaStops::open(std::move(parts));
    ASSERT_TRUE(opened.ok()) << opened.error().message();
    stops_ = std::move(*opened);
  }
  static v1::ReplicaStop stop(char replication = 'r') {
    v1::ReplicaStop stop;
    stop.set_vm(std::string(16, 'v'));
    stop.set_name("web");
    stop.set_peer("127.0.0.1:9");
    stop.set_replication(std::string(16, replication));
    stop.set_fencing_token(3);
    stop.set_realtime_ns(system_clock().realtime_ns());
    return stop;
  }
  ::testing::AssertionResult comes(const std::function<bool()>& what) {
    const Deadline deadline = Deadline::after(std::chrono::seconds(30));
    while (!what()) {
      if (deadline.passed()) return ::testing::AssertionFailure() << "it does not come";
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return ::testing::AssertionSuccess();
  }

  testing::TempDir directory_{"/dev/shm"};  // thousands of fsyncs
  std::atomic<bool> unreachable_{false};
  std::atomic<v1::PeerKind> answer_{v1::PEER_REPLICA_FORGOTTEN};
  std::atomic<std::uint32_t> code_{0};
  std::atomic<int> attempts_{0};
  std::atomic<bool> recovered_{false};
  std::unique_ptr<ReplicaStops> stops_;
};

TEST_F(ReplicaStopsTest, APeerThatAnswersIsToldOnce) {
  open();
  const auto told = stops_->tell(stop());
  ASSERT_TRUE(told.ok());
  EXPECT_EQ(told->told, Told::kYes);
  EXPECT_EQ(stops_->untold(), 0U);
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
  EXPECT_EQ(attempts_, 1);
}

TEST_F(ReplicaStopsTest, APeerThatIsAwayIsToldWhenItIsBackAlsoByTheNextFvmmd) {
  unreachable_ = true;
  open();
  const auto told = stops_->tell(stop());
  ASSERT_TRUE(told.ok());
  EXPECT_EQ(told->told, Told::kLater);
  EXPECT_NE(told->why.find("no route"), std::string::npos);
  EXPECT_TRUE(comes([&] { return attempts_ >= 3; })) << "it goes on trying";
  open();
  EXPECT_EQ(stops_->untold(), 1U);
  unreachable_ = false;
  EXPECT_TRUE(comes([&] { return stops_->untold() == 0; }));
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
  EXPECT_FALSE(recovered_);
}

TEST_F(ReplicaStopsTest, ARecoveryThatIsHeardOfLaterIsReported) {
  unreachable_ = true;
  open();
  ASSERT_EQ(stops_->tell(stop())->told, Told::kLater);
  answer_ = v1::PEER_FENCED;
  unreachable_ = false;
  EXPECT_TRUE(comes([&] { return recovered_.load(); }));
  EXPECT_EQ(stops_->untold(), 0U);
  EXPECT_EQ(stops_->tell(stop('s'))->told, Told::kRecovered) << "and at once where it answers at once";
}

TEST_F(ReplicaStopsTest, AnOlderPeerThatDoesNotUnderstandIsAskedOnceAndNamed) {
  answer_ = v1::PEER_REJECTED;
  code_ = static_cast<std::uint32_t>(Errc::kInvalidArgument);
  open();
  const auto told = stops_->tell(stop());
  ASSERT_TRUE(told.ok());
  EXPECT_EQ(told->told, Told::kNotUnderstood);
  EXPECT_NE(told->why.find("127.0.0.1:9"), std::string::npos) << told->why;
  EXPECT_EQ(stops_->untold(), 0U);
}

TEST_F(ReplicaStopsTest, APeerThatIsBusyIsAskedAgain) {
  answer_ = v1::PEER_REJECTED;
  code_ = static_cast<std::uint32_t>(Errc::kDeadlineExceeded);
  open();
  EXPECT_EQ(stops_->tell(stop())->told, Told::kLater);
  answer_ = v1::PEER_REPLICA_FORGOTTEN;
  EXPECT_TRUE(comes([&] { return stops_->untold() == 0; }));
}

TEST_F(ReplicaStopsTest, ANewReplicationToTheSamePeerTakesItsPlace) {
  unreachable_ = true;
  open();
  ASSERT_TRUE(stops_->tell(stop()).ok());
  stops_->supersede(std::string(16, 'x'), "127.0.0.1:9");
  stops_->supersede(std::string(16, 'v'), "127.0.0.1:10");
  EXPECT_EQ(stops_->untold(), 1U);
  stops_->supersede(std::string(16, 'v'), "127.0.0.1:9");
  EXPECT_EQ(stops_->untold(), 0U);
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_F(ReplicaStopsTest, PastTheLimitAPeerIsToldOnceAndThatIsSaid) {
  unreachable_ = true;
  open();
  for (std::size_t i = 0; i < kUntoldStopsMax; ++i) {
    auto one = stop();
    std::string id(16, 1);
    std::memcpy(id.data(), &i, sizeof i);
    one.set_replication(id);
    ASSERT_EQ(stops_->tell(one)->told, Told::kLater) << i;
  }
  const auto over = stops_->tell(stop('z'));
  ASSERT_TRUE(over.ok());
  EXPECT_EQ(over->told, Told::kNotUnderstood);
  EXPECT_NE(over->why.find("1024"), std::string::npos) << over->why;
  EXPECT_EQ(stops_->untold(), kUntoldStopsMax);
}

TEST_F(ReplicaStopsTest, AFileThatIsNoneOfOursIsNamed) {
  std::ofstream(directory_.path() / "x.pb") << "\xff\xff not a record";
  ReplicaStops::Parts parts;
  parts.directory = directory_.path();
  parts.tell = [](const v1::ReplicaStop&) -> Result<v1::PeerMessage> { return Error(Errc::kUnavailable, ""); };
  const auto opened = ReplicaStops::open(std::move(parts));
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.error().code(), Errc::kDataLoss);
  EXPECT_NE(opened.error().message().find("x.pb"), std::string::npos);
}

}  // namespace
}  // namespace fvmm::daemon
