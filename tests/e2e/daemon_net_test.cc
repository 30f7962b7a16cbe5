// Networks between two real daemons: configured by fvmmctl, opened by fvmmd, carried by templates, clones and
// migrations.
#include <signal.h>

#include <set>

#include "support/daemons.h"
#include "support/net_peer.h"

namespace fvmm::test {
namespace {

using testing::NetPeer;

class DaemonNet : public TwoHosts {
 protected:
  /// echo.elf on A; what is behind --net.
  void boot(const std::string& vm, const std::string& net) {
    const Ctl created = a_->ctl({"vm", "create", vm, "--memory", "64M", "--kernel", guest("echo.elf"), "--cmdline",
                                 "beat=50", "--net", net, "--start"});
    ASSERT_EQ(created.code, 0) << created;
    ASSERT_TRUE(a_->serial_contains(vm, "FVMM echo slot="));
  }
  double sealed_of(const std::string& vm) { return a_->ctl({"replicate", "status", vm}).number("generation_sealed"); }
  /// To B, until a few generations are sealed there.
  void replicate(const std::string& vm) {
    const Ctl started = a_->ctl({"replicate", "start", vm, "--to", b_->listen(), "--interval", "20ms"});
    ASSERT_EQ(started.code, 0) << started;
    ASSERT_TRUE(wait_until([&] { return sealed_of(vm) >= 3; }));
  }
  void kill_source() {
    a_->kill_daemon();
    for (const pid_t worker : a_->workers()) ::kill(worker, SIGKILL);
    ASSERT_TRUE(wait_until([&] { return a_->workers().empty(); }));
  }
  /// B's VM has come: the same five frames, before any other.
  void expect_announced(NetPeer& peer) {
    ASSERT_TRUE(peer.accept());
    const auto rarp = peer.receive();
    ASSERT_TRUE(rarp.has_value());
    EXPECT_EQ(rarp->at(12), std::byte{0x80});
    EXPECT_TRUE(wait_until([&] { return net_of(*b_, "web").at("announced").to_number<int>() == 5; }));
    for (int i = 1; i < 5; ++i) EXPECT_EQ(peer.receive(), rarp);
  }
  [[nodiscard]] std::string path_of(const std::string& name) const { return (cluster_.root() / name).string(); }
  static boost::json::object net_of(Host& host, const std::string& vm) {
    const Ctl shown = host.ctl({"vm", "show", vm});
    const auto* nets = shown.at("nets").if_array();
    if (nets != nullptr && !nets->empty()) return nets->at(0).as_object();
    ADD_FAILURE() << shown;
    return {};
  }
};

TEST_F(DaemonNet, ANetworkIsShownMovesIsAnnouncedAndComesBack) {
  NetPeer peer_a(path_of("net-a"));
  NetPeer peer_b(path_of("net-b"));
  ASSERT_NO_FATAL_FAILURE(boot("web", "unix=" + peer_a.path()));
  ASSERT_TRUE(peer_a.accept());
  EXPECT_TRUE(testing::echoes(peer_a, 200));
  const auto shown = net_of(*a_, "web");
  EXPECT_EQ(Host::text(shown, "id"), "net0");
  EXPECT_TRUE(shown.at("link_up").as_bool());
  EXPECT_EQ(shown.at("received_frames").to_number<int>(), 200);
  const std::string mac = Host::text(shown, "mac");
  EXPECT_TRUE(mac.starts_with("02")) << mac;

  ASSERT_TRUE(share_template(*a_, *b_, "web", "base"));
  const Ctl moved = a_->ctl({"migrate", "web", "--to", b_->listen(), "--net", "net0:unix=" + peer_b.path()});
  ASSERT_EQ(moved.code, 0) << moved;
  EXPECT_EQ(peer_a.receive(), std::nullopt) << "the source has hung up";
  ASSERT_NO_FATAL_FAILURE(expect_announced(peer_b));
  EXPECT_TRUE(testing::echoes(peer_b, 200));
  EXPECT_EQ(Host::text(net_of(*b_, "web"), "mac"), mac) << "it is the same VM";

  const Ctl back = b_->ctl({"migrate", "web", "--to", a_->listen(), "--net", "net0:unix=" + peer_a.path()});
  ASSERT_EQ(back.code, 0) << back;
  ASSERT_TRUE(peer_a.accept());
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(peer_a.receive().has_value());
  EXPECT_TRUE(testing::echoes(peer_a, 200));
}

TEST_F(DaemonNet, ADestinationWithoutTheBackendRefusesBeforeAnyPause) {
  NetPeer peer(path_of("net"));
  ASSERT_NO_FATAL_FAILURE(boot("web", "unix=" + peer.path()));
  ASSERT_TRUE(peer.accept());
  const Ctl moved = a_->ctl({"migrate", "web", "--to", b_->listen(), "--net", "net0:tap=fvmm-nosuch"});
  EXPECT_EQ(moved.code, 1) << moved;
  EXPECT_NE(moved.err.find("net0: tap fvmm-nosuch does not exist"), std::string::npos) << moved;
  const Ctl unknown = a_->ctl({"migrate", "web", "--to", b_->listen(), "--net", "net1:unix=/x"});
  EXPECT_EQ(unknown.code, 1) << unknown;
  EXPECT_NE(unknown.err.find("no network \"net1\""), std::string::npos) << unknown;
  EXPECT_TRUE(testing::echoes(peer, 100)) << "the guest goes on where it is";
}

TEST_F(DaemonNet, ARecoveredVmKeepsItsPlaceAndAddressAndIsAnnounced) {
  NetPeer peer(path_of("net"));
  ASSERT_NO_FATAL_FAILURE(boot("web", "unix=" + peer.path()));
  ASSERT_TRUE(peer.accept());
  EXPECT_TRUE(testing::echoes(peer, 200));
  const std::string mac = Host::text(net_of(*a_, "web"), "mac");
  ASSERT_NO_FATAL_FAILURE(replicate("web"));
  kill_source();

  const Ctl recovered = b_->ctl({"replicate", "recover", "web", "--source-is-dead"});
  ASSERT_EQ(recovered.code, 0) << recovered;
  ASSERT_NO_FATAL_FAILURE(expect_announced(peer));
  EXPECT_TRUE(testing::echoes(peer, 200));
  EXPECT_EQ(Host::text(net_of(*b_, "web"), "mac"), mac) << "it is the same VM";
  a_->start();
  EXPECT_EQ(a_->state("web"), "lost");
}

// Its daemon is gone, its guest is not: whoever vouches wrongly, and is refused, has stopped nothing.
TEST_F(DaemonNet, ARecoveryWithoutTheBackendLeavesTheSourceAloneAndOneElsewhereRuns) {
  NetPeer peer_a(path_of("net-a"));
  ASSERT_NO_FATAL_FAILURE(boot("web", "unix=" + peer_a.path()));
  ASSERT_TRUE(peer_a.accept());
  const std::string mac = Host::text(net_of(*a_, "web"), "mac");
  ASSERT_NO_FATAL_FAILURE(replicate("web"));
  a_->kill_daemon();
  const std::vector<std::string> recover{"replicate", "recover", "web", "--source-is-dead", "--net"};
  for (const auto& [place, says] : {std::pair{std::string("net0:tap=fvmm-nosuch"), "net0: tap fvmm-nosuch"},
                                    std::pair{"net0:unix=" + path_of("nobody"), "net0"},
                                    std::pair{std::string("net1:unix=/x"), "no network \"net1\""}}) {
    std::vector<std::string> words = recover;
    words.push_back(place);
    const Ctl refused = b_->ctl(words);
    EXPECT_EQ(refused.code, 1) << refused;
    EXPECT_NE(refused.err.find(says), std::string::npos) << refused;
    EXPECT_EQ(b_->state("web"), "") << "nothing of it is here";
  }
  EXPECT_TRUE(testing::echoes(peer_a, 100));
  a_->start();
  const double sealed = sealed_of("web");
  EXPECT_TRUE(wait_until([&] { return sealed_of("web") >= sealed + 3; })) << "and its replication goes on";
  kill_source();

  NetPeer peer_b(path_of("net-b"));
  std::vector<std::string> words = recover;
  words.push_back("net0:unix=" + peer_b.path());
  const Ctl recovered = b_->ctl(words);
  ASSERT_EQ(recovered.code, 0) << recovered;
  ASSERT_NO_FATAL_FAILURE(expect_announced(peer_b));
  EXPECT_TRUE(testing::echoes(peer_b, 200));
  const auto shown = net_of(*b_, "web");
  EXPECT_EQ(Host::text(shown, "mac"), mac);
  ASSERT_EQ(b_->ctl({"vm", "stop", "web"}).code, 0);
  ASSERT_EQ(b_->ctl({"vm", "start", "web"}).code, 0) << "where it was recovered to";
  EXPECT_TRUE(peer_b.accept());
  a_->start();
  EXPECT_EQ(a_->state("web"), "lost");
}

TEST_F(DaemonNet, ClonesHavePlacesAndAddressesOfTheirOwn) {
  NetPeer original(path_of("net"));
  NetPeer first(path_of("clone-1"));
  NetPeer second(path_of("clone-2"));
  ASSERT_NO_FATAL_FAILURE(boot("web", "unix=" + original.path()));
  ASSERT_TRUE(original.accept());
  ASSERT_EQ(a_->ctl({"template", "create", "base", "--from", "web"}).code, 0);
  const Ctl cloned = a_->ctl(
      {"vm", "clone", "copy", "--template", "base", "--count", "2", "--net", "unix=" + path_of("clone-%n"), "--start"});
  ASSERT_EQ(cloned.code, 0) << cloned;
  std::set<std::string> macs{Host::text(net_of(*a_, "web"), "mac")};
  for (auto& [peer, name] : {std::pair{&first, "copy-1"}, std::pair{&second, "copy-2"}}) {
    ASSERT_TRUE(peer->accept()) << name;
    EXPECT_TRUE(testing::echoes(*peer, 100)) << name;
    macs.insert(Host::text(net_of(*a_, name), "mac"));
    EXPECT_EQ(net_of(*a_, name).at("announced").to_number<int>(), 0) << "it still uses the original's address";
  }
  EXPECT_EQ(macs.size(), 3U);
  EXPECT_TRUE(testing::echoes(original, 100));
  const Ctl wrong = a_->ctl({"vm", "clone", "odd", "--template", "base", "--net", "unix=/x", "--net", "unix=/y"});
  EXPECT_EQ(wrong.code, 1) << wrong;
  EXPECT_NE(wrong.err.find("has 1 networks, and 2 were given"), std::string::npos) << wrong;
}

TEST_F(DaemonNet, ErrorsOfATapNameItAndTheFix) {
  const Ctl created = a_->ctl(
      {"vm", "create", "web", "--memory", "64M", "--kernel", guest("echo.elf"), "--net", "tap=fvmm-nosuch", "--start"});
  EXPECT_EQ(created.code, 1) << created;
  EXPECT_NE(created.err.find("ip tuntap add dev fvmm-nosuch mode tap"), std::string::npos) << created;
}

}  // namespace
}  // namespace fvmm::test
