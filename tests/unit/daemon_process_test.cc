#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "base/check.h"
#include "daemon/daemon.h"
#include "daemon/systemd.h"
#include "support/daemon_fakes.h"

namespace fvmm::daemon {
namespace {

TEST(Systemd, NotificationReachesTheSocket) {
  const test::ScratchDirectory scratch;
  const std::string path = (scratch.path() / "notify").string();
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  ASSERT_EQ(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  ::setenv("NOTIFY_SOCKET", path.c_str(), 1);
  const Status sent = notify_systemd("READY=1");
  ::unsetenv("NOTIFY_SOCKET");
  ASSERT_TRUE(sent) << sent.error().message();
  char buffer[32] = {};
  EXPECT_EQ(::recv(fd.get(), buffer, sizeof(buffer), MSG_DONTWAIT), 7);
  EXPECT_STREQ(buffer, "READY=1");
}

TEST(Systemd, WithoutSystemdNothingHappensAndABrokenSocketIsAnError) {
  EXPECT_TRUE(notify_systemd("READY=1"));
  ::setenv("NOTIFY_SOCKET", "/nowhere/notify", 1);
  EXPECT_EQ(notify_systemd("READY=1").error().code(), Errc::kIo);
  ::setenv("NOTIFY_SOCKET", std::string(200, 'x').c_str(), 1);
  EXPECT_EQ(notify_systemd("READY=1").error().code(), Errc::kInvalidArgument);
  ::unsetenv("NOTIFY_SOCKET");
}

TEST(Systemd, ListenersOfAnotherProcessAreLeftAndTwoAreRefused) {
  ::setenv("LISTEN_PID", "1", 1);
  ::setenv("LISTEN_FDS", "1", 1);
  auto listener = take_systemd_listener();
  ASSERT_TRUE(listener);
  EXPECT_FALSE(*listener);
  EXPECT_EQ(::getenv("LISTEN_FDS"), nullptr);  // workers must not see it
  ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
  ::setenv("LISTEN_FDS", "2", 1);
  EXPECT_EQ(take_systemd_listener().error().code(), Errc::kInvalidArgument);
}

class DaemonTest : public testing::Test {
 protected:
  DaemonTest() {
    options_.runtime_directory = scratch_.path() / "run";
    options_.state_directory = scratch_.path() / "state";
    options_.listen = "127.0.0.1:0";
    options_.warm_workers = 0;
  }
  test::ScratchDirectory scratch_;
  DaemonOptions options_;
};

TEST_F(DaemonTest, ServesUntilStoppedAndOpensAgain) {
  for (int i = 0; i < 2; ++i) {
    auto daemon = Daemon::open(options_, std::nullopt);
    ASSERT_TRUE(daemon) << daemon.error().message();
    EXPECT_NE((*daemon)->listen(), "127.0.0.1:0");
    std::thread server([&daemon] { (*daemon)->run(); });
    auto client =
        control::Client::connect(options_.runtime_directory / "fvmmd.sock", Deadline::after(std::chrono::seconds(20)));
    ASSERT_TRUE(client);
    v1::HostInfo info;
    const Status called =
        (*client)->call("fvmm.v1.Host/Info", v1::Empty(), info, Deadline::after(std::chrono::seconds(20)));
    EXPECT_TRUE(called);
    EXPECT_EQ(info.listen(), (*daemon)->listen());
    EXPECT_EQ(info.version(), kVersion);
    EXPECT_GT(info.memory_bytes(), 0U);
    (*daemon)->stop();
    server.join();
  }
}

TEST_F(DaemonTest, StateDirectoryHasOneDaemon) {
  const auto first = Daemon::open(options_, std::nullopt);
  ASSERT_TRUE(first);
  options_.runtime_directory = scratch_.path() / "run2";
  const auto second = Daemon::open(options_, std::nullopt);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(second.error().message().find("--state-dir"), std::string::npos);
}

TEST_F(DaemonTest, PeerAddressBeyondThisHostIsRefused) {
  options_.listen = "0.0.0.0:0";
  EXPECT_EQ(Daemon::open(options_, std::nullopt).error().code(), Errc::kInvalidArgument);
}

TEST_F(DaemonTest, RuntimePathTooLongForSocketsIsRefused) {
  options_.runtime_directory = scratch_.path() / std::string(100, 'r');
  const auto daemon = Daemon::open(options_, std::nullopt);
  ASSERT_FALSE(daemon);
  EXPECT_EQ(daemon.error().code(), Errc::kInvalidArgument);
}

}  // namespace
}  // namespace fvmm::daemon
