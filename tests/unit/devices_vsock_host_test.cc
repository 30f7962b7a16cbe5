// The paths of a vsock device in the file system: who may connect when, and what is left behind.
#include "devices/vsock_host.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/stat.h>

#include <fstream>

#include "support/temp_dir.h"

namespace fvmm::devices {
namespace {

namespace fs = std::filesystem;

class UnixVsock : public ::testing::Test {
 protected:
  [[nodiscard]] std::unique_ptr<UnixVsockHost> bound() const {
    auto host = UnixVsockHost::bind(path);
    EXPECT_TRUE(host.ok()) << host.error().message();
    return host.ok() ? std::move(*host) : nullptr;
  }
  testing::TempDir directory;
  const fs::path path = directory.path() / "vsock.sock";
};

TEST_F(UnixVsock, NobodyCanConnectBeforeItListens) {
  const auto host = bound();
  EXPECT_TRUE(fs::is_socket(path));
  EXPECT_EQ(host->fd(), -1);
  EXPECT_FALSE(connect_to_path(path).ok());
  ASSERT_TRUE(host->listen().ok());
  EXPECT_TRUE(host->listen().ok()) << "a second time is fine";
  const auto program = connect_to_path(path);
  ASSERT_TRUE(program.ok());
  pollfd wanted{.fd = host->fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&wanted, 1, 30'000), 1);
  EXPECT_TRUE(*host->accept());
  EXPECT_FALSE(*host->accept()) << "there is no other";
}

TEST_F(UnixVsock, OnlyItsOwnerAndGroupMayConnect) {
  const auto host = bound();
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660U);
}

TEST_F(UnixVsock, ItsPathGoesWithIt) {
  auto host = bound();
  ASSERT_TRUE(host->listen().ok());
  host->close();
  EXPECT_FALSE(fs::exists(path));
  host->close();
  EXPECT_TRUE(host->listen().ok()) << "harmless";
  host = bound();
  host.reset();
  EXPECT_FALSE(fs::exists(path));
}

TEST_F(UnixVsock, APathThatIsListenedAtIsRefusedAndADeadOneReplaced) {
  const auto living = bound();
  ASSERT_TRUE(living->listen().ok());
  const auto refused = UnixVsockHost::bind(path);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kAlreadyExists);
  EXPECT_NE(refused.error().message().find(path.string()), std::string::npos);
  EXPECT_TRUE(connect_to_path(path).ok()) << "it is still there";

  const fs::path other = directory.path() / "dead.sock";
  auto socket = BoundSocket::bind(other).value();
  fs::rename(other, directory.path() / "aside");
  socket.close();
  fs::rename(directory.path() / "aside", other);  // as a killed process leaves it
  EXPECT_TRUE(fs::is_socket(other));
  EXPECT_TRUE(UnixVsockHost::bind(other).ok());
}

TEST_F(UnixVsock, AFileIsNeitherReplacedNorRemoved) {
  std::ofstream(path) << "precious";
  EXPECT_EQ(UnixVsockHost::bind(path).error().code(), Errc::kAlreadyExists);
  EXPECT_FALSE(remove_dead_socket(path).ok());
  EXPECT_TRUE(fs::is_regular_file(path));
}

TEST_F(UnixVsock, APathThatSomebodyElseHasByNowIsLeftAlone) {
  auto first = bound();
  const auto second = bound();  // the first one does not listen: it looks dead
  const Status late = first->listen();
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code(), Errc::kAborted);
  first->close();
  ASSERT_TRUE(second->listen().ok());
  EXPECT_TRUE(connect_to_path(path).ok());
}

TEST_F(UnixVsock, RemovesOnlyTheDead) {
  EXPECT_TRUE(remove_dead_socket(path).ok()) << "nothing there";
  const auto living = bound();
  ASSERT_TRUE(living->listen().ok());
  EXPECT_EQ(remove_dead_socket(path).error().code(), Errc::kAlreadyExists);
  EXPECT_TRUE(fs::exists(path));
}

TEST_F(UnixVsock, ReachesTheProgramBehindAPort) {
  const auto host = bound();
  EXPECT_EQ(host->connect(52).error().code(), Errc::kUnavailable);
  auto program = BoundSocket::bind(path.string() + "_52").value();
  EXPECT_EQ(host->connect(52).error().code(), Errc::kUnavailable) << "it does not listen yet";
  ASSERT_TRUE(program.listen(4).ok());
  EXPECT_TRUE(host->connect(52).ok());
  EXPECT_TRUE(*program.accept());
}

TEST_F(UnixVsock, APathLeavesRoomForAnyPort) {
  const std::size_t prefix = directory.path().string().size() + 1;
  const fs::path longest = directory.path() / std::string(kVsockPathBytesMax - prefix, 'p');
  const auto host = UnixVsockHost::bind(longest);
  ASSERT_TRUE(host.ok()) << host.error().message();
  auto program = BoundSocket::bind(longest.string() + "_4294967295").value();
  ASSERT_TRUE(program.listen(4).ok());
  EXPECT_TRUE((*host)->connect(0xffff'ffff).ok());
  const auto longer = UnixVsockHost::bind(longest.string() + "p");
  ASSERT_FALSE(longer.ok());
  EXPECT_EQ(longer.error().code(), Errc::kInvalidArgument);
}

TEST_F(UnixVsock, ADirectoryThatIsNotThereIsAnError) {
  EXPECT_EQ(UnixVsockHost::bind(directory.path() / "nowhere" / "vsock.sock").error().code(), Errc::kIo);
}

}  // namespace
}  // namespace fvmm::devices
