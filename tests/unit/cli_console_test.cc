// The console between a socket and pipes or a pseudo-terminal.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include <future>
#include <sstream>

#include "cli/commands.h"
#include "control/unix_socket.h"
#include "support/served.h"

namespace fvmm::cli {
namespace {

struct Pipe {
  UniqueFd read, write;
  Pipe() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    read.reset(ends[0]);
    write.reset(ends[1]);
  }
};

std::string read_until(int fd, std::string_view end) {
  std::string text;
  char byte = 0;
  while (!text.ends_with(end) && ::read(fd, &byte, 1) == 1) text.push_back(byte);
  return text;
}

/// A console joined on a thread; the test is the guest's end of the socket.
class CliConsole : public testing::Test {
 protected:
  void join(int in, int out) {
    const auto path = directory_.path() / "console";
    const UniqueFd listener = std::move(*control::listen_unix(path));
    ended_ = std::async(std::launch::async, [this, path, in, out] {
      return join_console(path.string(), Streams{nowhere_, nowhere_, in, out, -1});
    });
    ASSERT_TRUE(control::wait_for(listener.get(), POLLIN, test::soon()));
    guest_.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(guest_);
  }
  void guest_says(std::string_view text) {
    ASSERT_EQ(::send(guest_.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
  }

  test::TemporaryDirectory directory_;
  std::ostringstream nowhere_;
  UniqueFd guest_;
  std::future<Status> ended_;
};

TEST_F(CliConsole, PipesBothWaysAndEndsWithStandardInput) {
  Pipe in;
  Pipe out;
  join(in.read.get(), out.write.get());
  guest_says("login: ");
  EXPECT_EQ(read_until(out.read.get(), ": "), "login: ");
  const std::string_view typed = "root\x1d\n";  // Ctrl-] in a pipe is a byte like any other
  ASSERT_EQ(::write(in.write.get(), typed.data(), typed.size()), 6);
  EXPECT_EQ(read_until(guest_.get(), "\n"), typed);
  in.write.reset();
  EXPECT_TRUE(ended_.get().ok());
}

TEST_F(CliConsole, EndsWithTheConsole) {
  Pipe in;
  Pipe out;
  join(in.read.get(), out.write.get());
  guest_says("bye");
  guest_.reset();
  EXPECT_TRUE(ended_.get().ok());
  out.write.reset();
  EXPECT_EQ(read_until(out.read.get(), "never"), "bye");
}

TEST_F(CliConsole, TerminalIsRawUntilTheLeaveKeyAndThenAsBefore) {
  const UniqueFd keyboard(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(keyboard);
  ASSERT_EQ(::grantpt(keyboard.get()), 0);
  ASSERT_EQ(::unlockpt(keyboard.get()), 0);
  const UniqueFd terminal(::open(::ptsname(keyboard.get()), O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(terminal);
  termios before{};
  ASSERT_EQ(::tcgetattr(terminal.get(), &before), 0);
  join(terminal.get(), terminal.get());
  guest_says("# ");
  EXPECT_EQ(read_until(keyboard.get(), "# "), "# ");  // it speaks, so the terminal is raw by now
  termios during{};
  ASSERT_EQ(::tcgetattr(terminal.get(), &during), 0);
  EXPECT_EQ(during.c_lflag & (ICANON | ECHO | ISIG), 0U);
  ASSERT_EQ(::write(keyboard.get(), "ls\x03\x1d", 4), 4);  // Ctrl-C goes to the guest, Ctrl-] ends
  EXPECT_TRUE(ended_.get().ok());
  EXPECT_EQ(read_until(guest_.get(), "\x03"), "ls\x03");
  termios after{};
  ASSERT_EQ(::tcgetattr(terminal.get(), &after), 0);
  EXPECT_EQ(after.c_lflag, before.c_lflag);
}

TEST(CliConsoleAlone, MissingConsoleIsAnError) {
  std::ostringstream nowhere;
  EXPECT_EQ(join_console("/nonexistent/console", Streams{nowhere, nowhere, -1, -1, -1}).error().code(),
            Errc::kUnavailable);
}

}  // namespace
}  // namespace fvmm::cli
