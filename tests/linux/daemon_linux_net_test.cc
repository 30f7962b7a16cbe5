// Linux on a network of TAP devices and a bridge, in a network namespace of the test: answers, is cloned, and is
// migrated between two daemons while a TCP connection stays open.
#include "support/console.h"
#include "support/daemons.h"
#include "support/linux_guest.h"
#include "support/net_echo.h"
#include "support/tap_network.h"

namespace fvmm::test {
namespace {

constexpr const char* kBridge = "fvmmbr";

class DaemonLinuxNet : public ::testing::Test {
 protected:
  void SetUp() override {
    FVMM_NEEDS_LINUX("up", kernel);
    FVMM_NEEDS_OWN_NETWORK();
    kernel_ = kernel;
    testing::make_bridge(kBridge);
    testing::set_address(kBridge, "10.77.0.1");
    for (const char* tap : {"tux-a", "tux-b", "twin-1"}) {
      testing::make_tap(tap);
      testing::join_bridge(kBridge, tap);
    }
    a_ = &cluster_.add("A");
    b_ = &cluster_.add("B");
  }
  void boot() {
    const Ctl created =
        a_->ctl({"vm", "create", "tux", "--memory", "64M", "--kernel", kernel_, "--initrd", guest("linux-init.cpio"),
                 "--cmdline", linux_cmdline(1) + " net=2", "--net", "tap=tux-a", "--start"});
    ASSERT_EQ(created.code, 0) << created;
    ASSERT_TRUE(wait_until([&] { return a_->serial("tux").find("NET up") != std::string::npos; }, kLinuxBootWait))
        << "the network does not come up; Linux wrote:\n"
        << a_->serial("tux");
  }

  Cluster cluster_;
  std::string kernel_;
  Host* a_ = nullptr;
  Host* b_ = nullptr;
};

TEST_F(DaemonLinuxNet, ATcpConnectionStaysOpenOverAMigrationThereAndBack) {
  ASSERT_NO_FATAL_FAILURE(boot());
  testing::TcpEcho connection("10.77.0.2", 7);
  ASSERT_TRUE(connection.connected());
  EXPECT_TRUE(connection.echoes(256 * 1024));
  for (const char* mode : {"live", "suspend"}) {
    SCOPED_TRACE(mode);
    Host& from = a_->state("tux") == "running" ? *a_ : *b_;
    Host& to = &from == a_ ? *b_ : *a_;
    connection.start(512 * 1024);  // on a thread: bytes are under way while the guest moves
    const Ctl moved = from.ctl({"migrate", "tux", "--to", to.listen(), "--mode", mode, "--max-downtime", "500ms",
                                "--net", &to == a_ ? "net0:tap=tux-a" : "net0:tap=tux-b"});
    ASSERT_EQ(moved.code, 0) << moved;
    std::cout << mode << ": downtime " << moved.number("downtime_ms") << " ms" << std::endl;
    EXPECT_TRUE(connection.finish()) << "what came back is not what was sent";
    EXPECT_TRUE(connection.echoes(64 * 1024));
    EXPECT_TRUE(linux_goes_on(to, "tux", 1, 1));
  }
}

TEST_F(DaemonLinuxNet, ACloneAnswersWithAnAddressOfItsOwn) {
  ASSERT_NO_FATAL_FAILURE(boot());
  ASSERT_EQ(a_->ctl({"template", "create", "gold", "--from", "tux"}).code, 0);
  const Ctl cloned = a_->ctl({"vm", "clone", "twin", "--template", "gold", "--net", "tap=twin-1", "--start"});
  ASSERT_EQ(cloned.code, 0) << cloned;
  Console console(*a_, "twin");
  console.type("net 3\n");  // takes the driver off and puts it back: it reads its own MAC address
  ASSERT_TRUE(wait_until([&] { return a_->serial("twin").find("NET up") != std::string::npos; }, kLinuxBootWait))
      << a_->serial("twin");
  EXPECT_EQ(console.leave(), 0);
  for (const char* address : {"10.77.0.2", "10.77.0.3"}) {
    testing::TcpEcho connection(address, 7);
    ASSERT_TRUE(connection.connected()) << address;
    EXPECT_TRUE(connection.echoes(64 * 1024)) << address;
  }
  EXPECT_NE(testing::neighbour_of("10.77.0.2"), testing::neighbour_of("10.77.0.3"));
}

}  // namespace
}  // namespace fvmm::test
