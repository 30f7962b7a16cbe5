// fvmmd at the control socket that systemd passes it (sd_listen_fds(3)), without a systemd.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "support/daemons.h"
#include "support/temp_dir.h"

namespace fvmm::test {
namespace {

constexpr std::chrono::seconds kEndWait{20};

class SocketActivation : public ::testing::Test {
 protected:
  void SetUp() override {
    listener_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    socket_.string().copy(address.sun_path, sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listener_.get(), 16), 0);
  }
  /// As systemd starts a service: the listener is descriptor 3, and the variables name the process.
  Process start(const std::string& listeners) {
    const std::string script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=" + listeners + " exec \"$0\" \"$@\"";
    return {
        {"sh", "-c", script, std::string(FVMM_BIN_DIR) + "/fvmmd", "--runtime-dir", (files_.path() / "run").string(),
         "--state-dir", (files_.path() / "state").string(), "--warm-workers", "0"},
        log_,
        log_,
        listener_.get()};
  }
  Ctl show_host() {
    return RunningCtl({std::string(FVMM_BIN_DIR) + "/fvmmctl", "--socket", socket_.string(), "--output", "json", "host",
                       "show"},
                      files_.path() / ("ctl-" + std::to_string(++ctls_)))
        .finish();
  }

  ::fvmm::testing::TempDir files_;
  const std::filesystem::path socket_ = files_.path() / "activated.sock";
  const std::filesystem::path log_ = files_.path() / "fvmmd.log";
  UniqueFd listener_;
  int ctls_ = 0;
};

TEST_F(SocketActivation, WhoConnectsBeforeTheDaemonRunsIsServedAndTheSocketOutlivesIt) {
  for (int turn = 0; turn < 2; ++turn) {
    SCOPED_TRACE(turn);
    Process daemon = start("1");
    const Ctl shown = show_host();  // waits in the listener's queue until fvmmd accepts
    EXPECT_EQ(shown.code, 0) << shown << read_text(log_);
    EXPECT_NE(shown.text("version"), "");
    EXPECT_FALSE(std::filesystem::exists(files_.path() / "run" / "fvmmd.sock")) << "it has no socket of its own";
    daemon.signal(SIGTERM);
    EXPECT_EQ(daemon.wait(kEndWait), 0) << read_text(log_);
    EXPECT_TRUE(std::filesystem::is_socket(socket_)) << "the socket is systemd's";
  }
}

TEST_F(SocketActivation, TwoSocketsAreRefused) {
  Process daemon = start("2");
  const auto code = daemon.wait(kEndWait);
  ASSERT_TRUE(code.has_value());
  EXPECT_NE(*code, 0);
  EXPECT_NE(read_text(log_).find("systemd passed 2 sockets"), std::string::npos) << read_text(log_);
}

}  // namespace
}  // namespace fvmm::test
