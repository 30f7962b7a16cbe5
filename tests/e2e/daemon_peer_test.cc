// What another host can do to an fvmmd: refuse it, be of another version, lack what a VM needs, talk nonsense, stop
// talking. The guest stays where it runs, the daemon answers on, and nothing half-made remains.
#include <gtest/gtest.h>

#include <mutex>

#include "support/daemons.h"
#include "support/peer_talk.h"
#include "vmm/cpuid.h"

namespace fvmm::test {
namespace {

class PeerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_KVM();
    host_ = &cluster_.add("A");
  }
  Cluster& cluster() { return cluster_; }
  Host& host() { return *host_; }
  /// The Hello that the host really sends for that VM, taken by a peer that then refuses it.
  std::optional<v1::PeerHello> captured_hello(const std::string& vm, const std::string& mode) {
    std::mutex mutex;
    std::optional<v1::PeerHello> captured;
    const MadeUpPeer peer([&](net::Stream& stream, const v1::PeerHello& hello) {
      if (hello.purpose() != v1::MIGRATE) return;
      const std::lock_guard lock(mutex);
      captured = hello;
      (void)net::send_message(stream, net::FrameType::kControl, rejected(Errc::kUnavailable, "not today"), peer_wait());
    });
    const Ctl migrated = host().ctl({"migrate", vm, "--to", peer.listen(), "--mode", mode});
    EXPECT_EQ(migrated.code, 1) << migrated;
    EXPECT_NE(migrated.err.find("not today"), std::string::npos) << migrated;
    const std::lock_guard lock(mutex);
    if (captured) {
      captured->set_session(Id::random().raw());
      captured->set_fencing_token(captured->fencing_token() + 1);
    }
    return captured;
  }
  static v1::PeerMessage rejected(Errc code, const std::string& reason) {
    v1::PeerMessage message;
    message.set_kind(v1::PEER_REJECTED);
    message.set_code(static_cast<std::uint32_t>(code));
    message.set_reason(reason);
    return message;
  }
  static ::testing::AssertionResult refuses(const Host& at, const v1::PeerHello& hello, Errc code,
                                            const std::vector<std::string>& words) {
    const auto answer = ask_peer_raw(at.listen(), hello);
    if (!answer) return ::testing::AssertionFailure() << "no answer: " << answer.error().message();
    if (answer->kind() != v1::PEER_REJECTED || answer->code() != static_cast<std::uint32_t>(code)) {
      return ::testing::AssertionFailure() << "answered " << answer->ShortDebugString();
    }
    for (const std::string& word : words) {
      if (answer->reason().find(word) == std::string::npos) {
        return ::testing::AssertionFailure() << "\"" << word << "\" is not in: " << answer->reason();
      }
    }
    return ::testing::AssertionSuccess();
  }
  /// Nothing of a refused VM is left at that host.
  static void expect_nothing_left(Host& at, const std::string& vm) {
    EXPECT_TRUE(wait_until([&] { return at.state(vm).empty(); })) << at.state(vm);
    EXPECT_TRUE(wait_until([&] { return at.workers().empty(); }));
    EXPECT_TRUE(std::filesystem::is_empty(at.state_directory() / "vms"));
  }

 private:
  Cluster cluster_;
  Host* host_ = nullptr;
};

TEST_F(PeerTest, ARefusalOfThePeerIsToldAndTheGuestRunsOn) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  const MadeUpPeer peer([](net::Stream& stream, const v1::PeerHello& hello) {
    if (hello.purpose() != v1::MIGRATE && hello.purpose() != v1::PUSH_TEMPLATE) return;
    (void)net::send_message(stream, net::FrameType::kControl,
                            rejected(Errc::kFailedPrecondition, "peer version 1 is not ours, 7"), peer_wait());
  });

  const Ctl migrated = host().ctl({"migrate", "web", "--to", peer.listen()});

  EXPECT_EQ(migrated.code, 1) << migrated;
  EXPECT_NE(migrated.err.find("peer version 1 is not ours, 7"), std::string::npos) << migrated;
  EXPECT_EQ(host().state("web"), "running");
  EXPECT_TRUE(host().verified_after_now("web"));
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "web"}).code, 0);
  const Ctl pushed = host().ctl({"template", "push", "base", "--to", peer.listen()});
  EXPECT_EQ(pushed.code, 1) << pushed;
  EXPECT_NE(pushed.err.find("peer version 1 is not ours, 7"), std::string::npos) << pushed;
  EXPECT_TRUE(host().verified_after_now("web"));
}

TEST_F(PeerTest, APeerThatClosesOrTalksNonsenseAbortsTheMigration) {
  ASSERT_TRUE(boot_workload(host(), "web"));
  const MadeUpPeer silent([](net::Stream&, const v1::PeerHello&) {});
  EXPECT_EQ(host().ctl({"migrate", "web", "--to", silent.listen()}).code, 1);
  const MadeUpPeer babbling([](net::Stream& stream, const v1::PeerHello&) {
    const std::string nonsense(4096, 'z');
    (void)stream.send(std::as_bytes(std::span(nonsense)), peer_wait());
  });
  EXPECT_EQ(host().ctl({"migrate", "web", "--to", babbling.listen()}).code, 1);
  const MadeUpPeer confused([](net::Stream& stream, const v1::PeerHello&) {
    v1::PeerMessage started;
    started.set_kind(v1::PEER_STARTED);
    (void)net::send_message(stream, net::FrameType::kControl, started, peer_wait());
  });
  EXPECT_EQ(host().ctl({"migrate", "web", "--to", confused.listen()}).code, 1);

  EXPECT_EQ(host().state("web"), "running");
  EXPECT_TRUE(host().verified_after_now("web"));
}

TEST_F(PeerTest, AHelloOfAnotherVersionIsRefusedWithTheFix) {
  v1::PeerHello hello = migrate_hello("web");
  hello.set_version(migration::kPeerVersion + 1);
  EXPECT_TRUE(refuses(host(), hello, Errc::kFailedPrecondition,
                      {"version " + std::to_string(migration::kPeerVersion + 1), "same fvmmd"}));
  hello.set_version(0);
  EXPECT_TRUE(refuses(host(), hello, Errc::kFailedPrecondition, {"version 0"}));
  expect_nothing_left(host(), "web");
}

TEST_F(PeerTest, AHelloThatMakesNoSenseIsRefused) {
  v1::PeerHello hello = migrate_hello("web");
  hello.set_purpose(v1::HELLO_NONE);
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"purpose"}));
  hello = migrate_hello("web");
  hello.set_session("short");
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"session"}));
  hello = migrate_hello("../web");
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"../web"}));
  hello = migrate_hello("web");
  hello.mutable_vm()->clear_id();
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"id"}));
  hello = migrate_hello("web");
  hello.mutable_vm()->set_memory_bytes(4097);
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"4097"}));
  hello = migrate_hello("web");
  hello.mutable_vm()->set_memory_bytes(64 * kGiB);
  EXPECT_TRUE(refuses(host(), hello, Errc::kResourceExhausted, {"web", "64 GiB", "available"}));
  hello = migrate_hello("web");
  hello.set_mode("teleport");
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"teleport"}));
  hello = migrate_hello("web");
  hello.set_fencing_token(0);
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"fencing token"}));
  hello = migrate_hello("web");
  hello.mutable_template_()->set_id(Id::random().raw());
  hello.mutable_template_()->set_digest(Id::random().raw());
  hello.mutable_template_()->set_name("base");
  EXPECT_TRUE(refuses(host(), hello, Errc::kNotFound, {"base", "push"}));
  hello = migrate_hello("web");  // its CPU table is empty
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"CPUID"}));
  expect_nothing_left(host(), "web");
}

TEST_F(PeerTest, ACpuFeatureThatThisHostLacksIsNamedBeforeAnythingMoves) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  auto hello = captured_hello("web", "precopy");
  ASSERT_TRUE(hello);
  auto table = vmm::unpack_cpuid(hello->cpu().cpuid());
  ASSERT_TRUE(table.ok());
  for (auto& entry : *table) {
    if (entry.function == 1) entry.ecx |= 1U << 16;  // reserved: no CPU has it
  }
  hello->mutable_cpu()->set_cpuid(vmm::pack_cpuid(*table));

  EXPECT_TRUE(refuses(peer, *hello, Errc::kFailedPrecondition, {"feature bit 16", "1.ecx", "--cpu-template baseline"}));

  expect_nothing_left(peer, "web");
  hello->set_session(Id::random().raw());
  for (auto& entry : *table) {
    if (entry.function == 1) entry.ecx &= ~(1U << 16);
  }
  hello->mutable_cpu()->set_cpuid(vmm::pack_cpuid(*table));
  hello->mutable_cpu()->set_tsc_khz(hello->cpu().tsc_khz() + 1000);
  EXPECT_TRUE(refuses(peer, *hello, Errc::kFailedPrecondition, {"TSC", "kHz"}));
  expect_nothing_left(peer, "web");
  EXPECT_TRUE(host().verified_after_now("web"));
}

TEST_F(PeerTest, AVmOfThatNameOrIdAtThePeerIsInTheWay) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_TRUE(boot_workload(peer, "web"));
  auto hello = captured_hello("web", "precopy");
  ASSERT_TRUE(hello);

  const Ctl migrated = host().ctl({"migrate", "web", "--to", peer.listen()});

  EXPECT_EQ(migrated.code, 1) << migrated;
  EXPECT_NE(migrated.err.find("another VM named web is here"), std::string::npos) << migrated;
  EXPECT_EQ(host().state("web"), "running");
  EXPECT_TRUE(host().verified_after_now("web"));
  EXPECT_TRUE(refuses(host(), *hello, Errc::kAlreadyExists, {"web", "same id", "running"}));
  EXPECT_TRUE(host().verified_after_now("web"));
  EXPECT_TRUE(peer.verified_after_now("web"));
}

TEST_F(PeerTest, ATemplateOfTheSameNameAndAnotherIdentityIsInTheWay) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  ASSERT_TRUE(boot_workload(peer, "other", "64M", "seed=8 ws=4 rate=2000"));
  ASSERT_EQ(host().ctl({"template", "create", "base", "--from", "web"}).code, 0);
  ASSERT_EQ(peer.ctl({"template", "create", "base", "--from", "other"}).code, 0);

  const Ctl pushed = host().ctl({"template", "push", "base", "--to", peer.listen()});
  const Ctl migrated = host().ctl({"migrate", "web", "--to", peer.listen(), "--mode", "suspend"});

  EXPECT_EQ(pushed.code, 1) << pushed;
  EXPECT_NE(pushed.err.find("base"), std::string::npos) << pushed;
  EXPECT_EQ(migrated.code, 1) << migrated;
  EXPECT_NE(migrated.err.find("the template named base here is another one"), std::string::npos) << migrated;
  EXPECT_EQ(host().state("web"), "running");
  EXPECT_TRUE(host().verified_after_now("web"));
  EXPECT_TRUE(peer.verified_after_now("other"));
  EXPECT_EQ(peer.ctl({"template", "verify", "base"}).code, 0);
}

TEST_F(PeerTest, ASourceThatGoesAwayAfterReadyLeavesNoReplica) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  const auto hello = captured_hello("web", "precopy");
  ASSERT_TRUE(hello);

  const auto answer = ask_peer_raw(peer.listen(), *hello);  // and closes

  ASSERT_TRUE(answer.ok()) << answer.error().message();
  EXPECT_EQ(answer->kind(), v1::PEER_READY) << answer->reason();
  expect_nothing_left(peer, "web");
  const Ctl migrated = host().ctl({"migrate", "web", "--to", peer.listen(), "--mode", "precopy"});
  EXPECT_EQ(migrated.code, 0) << migrated;
  EXPECT_TRUE(peer.verified_after_now("web"));
}

TEST_F(PeerTest, ADataConnectionWithoutASessionIsRefused) {
  v1::PeerHello hello = migrate_hello("web");
  hello.set_purpose(v1::DATA);
  EXPECT_TRUE(refuses(host(), hello, Errc::kNotFound, {}));
  hello.set_session("");
  EXPECT_TRUE(refuses(host(), hello, Errc::kInvalidArgument, {"session"}));
  EXPECT_EQ(host().ctl({"host", "show"}).code, 0);
}

TEST_F(PeerTest, AnUnknownSessionIsRefusedForGoodBeforeThatIsSaid) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  auto hello = captured_hello("web", "precopy");
  ASSERT_TRUE(hello);
  v1::PeerHello question = *hello;
  question.set_purpose(v1::QUERY_SESSION);

  const auto answer = ask_peer_raw(peer.listen(), question);

  ASSERT_TRUE(answer.ok()) << answer.error().message();
  EXPECT_EQ(answer->kind(), v1::PEER_ANSWER);
  EXPECT_EQ(answer->answer().outcome(), "refused");
  EXPECT_TRUE(refuses(peer, *hello, Errc::kAborted, {}));
  peer.kill_daemon();
  peer.start();
  EXPECT_TRUE(refuses(peer, *hello, Errc::kAborted, {})) << "also after a restart";
  expect_nothing_left(peer, "web");
}

TEST_F(PeerTest, IdleConnectionsDelayAMigrationNoLongerThanTheirHellosAreWaitedFor) {
  Host& peer = cluster().add("B");
  ASSERT_TRUE(boot_workload(host(), "web"));
  std::vector<std::unique_ptr<net::Channel>> idle;
  for (int i = 0; i < 40; ++i) idle.push_back(connect_peer(peer.listen()));

  Ctl migrated;
  const bool came = wait_until([&] {
    migrated = host().ctl({"migrate", "web", "--to", peer.listen()});
    EXPECT_EQ(host().state("web"), migrated.code == 0 ? "moved" : "running");
    return migrated.code == 0;
  });

  EXPECT_TRUE(came) << migrated;
  EXPECT_TRUE(peer.verified_after_now("web"));
  for (const auto& channel : idle) EXPECT_TRUE(closed_by_peer(channel->fd()));
}

}  // namespace
}  // namespace fvmm::test
