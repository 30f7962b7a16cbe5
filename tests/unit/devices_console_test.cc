#include "devices/console.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "base/file.h"
#include "support/fake_devices.h"

namespace fvmm::devices {
namespace {

using testing::bytes_of;
namespace fs = std::filesystem;

constexpr std::chrono::seconds kWait{20};  // only a hang is that slow

Deadline soon() {
  return Deadline::after(kWait);
}

fs::path make_directory() {
  std::string name = (fs::temp_directory_path() / "fvmm-console-XXXXXX").string();
  const char* const made = ::mkdtemp(name.data());
  return made == nullptr ? fs::path("/nonexistent") : fs::path(made);
}

/// A directory of the test's own, gone with it.
struct Console : ::testing::Test {
  Console() = default;
  ~Console() override { fs::remove_all(directory); }
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;
  Console(Console&&) = delete;
  Console& operator=(Console&&) = delete;

  std::unique_ptr<SerialOutput> make(SerialOutput::Options options = {}) {
    if (options.log.empty()) options.log = log;
    auto output = SerialOutput::create(std::move(options));
    EXPECT_TRUE(output.ok());
    return std::move(*output);
  }
  [[nodiscard]] std::string log_text() const { return read_file(log, kLogBytesMax).value_or("(no log)"); }

  fs::path directory = make_directory();
  fs::path log = directory / "serial.log";
  fs::path socket = directory / "console.sock";
};

UniqueFd connect_to(const fs::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) fd.reset();
  return fd;
}

bool readable(int fd) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return ::poll(&entry, 1, static_cast<int>(std::chrono::milliseconds(kWait).count())) == 1;
}

/// Reads until `bytes` have come; fewer when the other side closes.
std::string receive(const UniqueFd& fd, std::size_t bytes) {
  std::string text;
  std::array<char, 4096> part{};
  while (text.size() < bytes && readable(fd.get())) {
    const ssize_t got = ::recv(fd.get(), part.data(), std::min(part.size(), bytes - text.size()), 0);
    if (got <= 0) break;
    text.append(part.data(), static_cast<std::size_t>(got));
  }
  return text;
}

bool closed(const UniqueFd& fd) {
  std::array<char, 1> byte{};
  return readable(fd.get()) && ::recv(fd.get(), byte.data(), 1, 0) <= 0;
}

void send_text(const UniqueFd& fd, std::string_view text) {
  ASSERT_EQ(::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
}

/// The server has noticed that its client left.
bool wait_until_free(const ConsoleServer& server) {
  for (const Deadline deadline = soon(); server.has_client() && !deadline.passed();) std::this_thread::yield();
  return !server.has_client();
}

/// A guest that takes input as long as it has room.
class Guest {
 public:
  ConsoleServer::Input input() {
    return [this](std::span<const std::byte> bytes) {
      const std::lock_guard lock(mutex_);
      const std::size_t taken = std::min(bytes.size(), room_);
      room_ -= taken;
      text_.append(reinterpret_cast<const char*>(bytes.data()), taken);
      offers_ += 1;
      changed_.notify_all();
      return taken;
    };
  }
  void set_room(std::size_t room) {
    const std::lock_guard lock(mutex_);
    room_ = room;
  }
  bool wait_for(std::string_view text) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, soon().at(), [&] { return text_ == text; });
  }
  bool wait_for_offer() {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, soon().at(), [&] { return offers_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string text_;
  std::size_t room_ = 1 << 20;
  int offers_ = 0;
};

TEST_F(Console, EmittedBytesAreInTheLogAfterFlush) {
  const auto output = make();
  output->emit(bytes_of("hello "));
  output->emit(bytes_of("world"));
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(log_text(), "hello world");
  EXPECT_EQ(output->recent(), "hello world");
  EXPECT_EQ(output->total_bytes(), 11u);
}

TEST_F(Console, LogIsAppendedToWhenTheVmStartsAgain) {
  for (const char* const text : {"one", "two"}) {
    const auto output = make();
    output->emit(bytes_of(text));
    ASSERT_TRUE(output->flush(soon()).ok());
  }
  EXPECT_EQ(log_text(), "onetwo");
}

TEST_F(Console, LogFillsToItsLimitAndThenStartsOverKeepingOneOldFile) {
  const auto output = make({.log = log, .log_bytes_max = 8});
  output->emit(bytes_of("12345678"));
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(log_text(), "12345678");
  EXPECT_FALSE(fs::exists(directory / "serial.log.1"));

  output->emit(bytes_of("9abcdefghijklmnopqr"));
  ASSERT_TRUE(output->flush(soon()).ok());

  EXPECT_EQ(log_text(), "pqr");
  EXPECT_EQ(*read_file(directory / "serial.log.1", 100), "hijklmno");
  EXPECT_EQ(output->log_lost_bytes(), 0u);
}

TEST_F(Console, CreateFailsWhenTheLogCannotBeOpened) {
  const auto output = SerialOutput::create({.log = directory / "missing" / "serial.log"});
  ASSERT_FALSE(output.ok());
  EXPECT_EQ(output.error().code(), Errc::kNotFound);
}

TEST_F(Console, ALogThatCannotBeWrittenIsCountedAndOutputGoesOn) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const auto output = make({.log = "/dev/full"});
  output->emit(bytes_of("lost"));
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(output->log_lost_bytes(), 4u);
  EXPECT_EQ(output->recent(), "lost");
}

TEST_F(Console, OneEmitBeyondTheBufferIsCutThereAndCounted) {
  const auto output = make({.log = log, .buffer_bytes_max = 4});
  output->emit(bytes_of("1234"));
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(output->dropped_bytes(), 0u);
  output->emit(bytes_of("5678X"));
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(output->dropped_bytes(), 1u);
  EXPECT_EQ(output->total_bytes(), 9u);
  EXPECT_EQ(log_text(), "12345678");
}

TEST_F(Console, RingKeepsTheLastBytes) {
  const auto output = make();
  std::string text;
  for (int i = 0; text.size() < 5 * kConsoleRingBytes; ++i) text += std::to_string(i) + "\n";
  for (std::size_t at = 0; at < text.size(); at += 10'000) {
    output->emit(bytes_of(std::string_view(text).substr(at, 10'000)));
  }
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(output->recent(), text.substr(text.size() - kConsoleRingBytes));
}

// The socket pair's buffer is filled and never read: the log must have everything all the same.
TEST_F(Console, ASlowClientLosesBytesAndNothingElseDoes) {
  const auto output = make();
  std::array<int, 2> pair{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
  const UniqueFd reader(pair[0]);
  output->attach(UniqueFd(pair[1]));
  const std::string block(kOutputBufferBytesMax, 'x');
  for (int i = 0; i < 3; ++i) {
    output->emit(bytes_of(block));
    ASSERT_TRUE(output->flush(soon()).ok());
  }
  EXPECT_GT(output->client_dropped_bytes(), 0u);
  EXPECT_EQ(output->dropped_bytes(), 0u);
  EXPECT_EQ(fs::file_size(log), 3 * block.size());
}

TEST_F(Console, OutputSurvivesTheDeathOfItsClient) {
  const auto output = make();
  std::array<int, 2> pair{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
  output->attach(UniqueFd(pair[1]));
  UniqueFd(pair[0]).reset();
  output->emit(bytes_of("after"));
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(log_text(), "after");
}

TEST_F(Console, ClientSeesTheRingThenLiveOutput) {
  const auto output = make();
  output->emit(bytes_of("before "));
  ASSERT_TRUE(output->flush(soon()).ok());
  Guest guest;
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  const UniqueFd client = connect_to(socket);
  ASSERT_EQ(receive(client, 7), "before ");
  output->emit(bytes_of("after"));
  EXPECT_EQ(receive(client, 5), "after");
}

TEST_F(Console, SocketIsForOwnerAndGroupOnly) {
  const auto output = make();
  Guest guest;
  const mode_t old_mask = ::umask(0);
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  ::umask(old_mask);
  struct stat info {};
  ASSERT_EQ(::stat(socket.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660u);
}

TEST_F(Console, InputReachesTheGuest) {
  const auto output = make();
  Guest guest;
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  const UniqueFd client = connect_to(socket);
  send_text(client, "ls\n");
  EXPECT_TRUE(guest.wait_for("ls\n"));
}

TEST_F(Console, InputWithoutRoomIsOfferedAgainUntilItIsTaken) {
  const auto output = make();
  Guest guest;
  guest.set_room(2);
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  const UniqueFd client = connect_to(socket);
  send_text(client, "abcdef");
  ASSERT_TRUE(guest.wait_for("ab"));
  guest.set_room(100);
  EXPECT_TRUE(guest.wait_for("abcdef"));
  EXPECT_EQ(server->input_dropped_bytes(), 0u);
}

TEST_F(Console, InputOfAClientThatLeftBeforeTheGuestHadRoomIsCounted) {
  const auto output = make();
  Guest guest;
  guest.set_room(0);
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  UniqueFd client = connect_to(socket);
  send_text(client, "abc");
  ASSERT_TRUE(guest.wait_for_offer());
  client.reset();
  ASSERT_TRUE(wait_until_free(*server));
  EXPECT_EQ(server->input_dropped_bytes(), 3u);
}

TEST_F(Console, AClientThatSendsAndLeavesAtOnceIsHeardToTheEnd) {
  const auto output = make();
  Guest guest;
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  UniqueFd client = connect_to(socket);
  const std::string text(3 * kConsoleInputBytesMax + 1, 'p');
  send_text(client, text);
  client.reset();
  EXPECT_TRUE(guest.wait_for(text));
  EXPECT_EQ(server->input_dropped_bytes(), 0u);
}

TEST_F(Console, AClientThatOnlyStoppedSendingStillReceives) {
  const auto output = make();
  Guest guest;
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  const UniqueFd client = connect_to(socket);
  send_text(client, "x");
  ASSERT_EQ(::shutdown(client.get(), SHUT_WR), 0);
  ASSERT_TRUE(guest.wait_for("x"));
  output->emit(bytes_of("still here"));
  EXPECT_EQ(receive(client, 10), "still here");
}

TEST_F(Console, ASecondClientIsToldBusyAndTheFirstKeepsTheConsole) {
  const auto output = make();
  Guest guest;
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  const UniqueFd first = connect_to(socket);
  send_text(first, "1");
  ASSERT_TRUE(guest.wait_for("1"));
  const UniqueFd second = connect_to(socket);
  EXPECT_NE(receive(second, 1000).find("in use"), std::string::npos);
  EXPECT_EQ(server->refused_clients(), 1u);
  output->emit(bytes_of("mine"));
  EXPECT_EQ(receive(first, 4), "mine");
}

TEST_F(Console, ManyClientsOneAfterAnotherLeaveNothingBehind) {
  const auto output = make();
  Guest guest;
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  std::string expected;
  for (int i = 0; i < 20; ++i) {
    UniqueFd client = connect_to(socket);
    ASSERT_TRUE(client);
    send_text(client, "k");
    expected += "k";
    ASSERT_TRUE(guest.wait_for(expected));
    client.reset();
    ASSERT_TRUE(wait_until_free(*server));
    output->emit(bytes_of("."));
  }
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(log_text(), std::string(20, '.'));
}

TEST_F(Console, StopClosesTheClientAndRemovesTheSocket) {
  const auto output = make();
  Guest guest;
  const auto server = std::move(*ConsoleServer::start(socket, *output, guest.input()));
  const UniqueFd client = connect_to(socket);
  send_text(client, "x");
  ASSERT_TRUE(guest.wait_for("x"));
  server->stop();
  server->stop();
  EXPECT_TRUE(closed(client));
  EXPECT_FALSE(fs::exists(socket));
}

TEST_F(Console, ASocketLeftByADeadProcessIsReplacedAndAFileIsNot) {
  const auto output = make();
  Guest guest;
  UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, socket.c_str(), sizeof(address.sun_path) - 1);
  ASSERT_EQ(::bind(dead.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  dead.reset();
  EXPECT_TRUE(ConsoleServer::start(socket, *output, guest.input()).ok());

  ASSERT_TRUE(replace_file(socket, "precious").ok());
  const auto refused = ConsoleServer::start(socket, *output, guest.input());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kAlreadyExists);
  EXPECT_EQ(*read_file(socket, 100), "precious");
}

TEST_F(Console, APathOf107BytesIsTakenAndOneOf108IsNot) {
  const auto output = make();
  Guest guest;
  const std::size_t prefix = directory.string().size() + 1;
  const fs::path longest = directory / std::string(107 - prefix, 'p');
  const fs::path too_long = directory / std::string(108 - prefix, 'p');
  EXPECT_TRUE(ConsoleServer::start(longest, *output, guest.input()).ok());
  const auto refused = ConsoleServer::start(too_long, *output, guest.input());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kInvalidArgument);
}

TEST_F(Console, EmittersOnSeveralThreadsLoseNothing) {
  constexpr std::size_t kEach = 20'000;
  const auto output = make();
  std::vector<std::thread> emitters(3);
  for (std::thread& emitter : emitters) {
    emitter = std::thread([&] {
      for (std::size_t i = 0; i < kEach; ++i) output->emit(bytes_of("."));
    });
  }
  for (std::thread& emitter : emitters) emitter.join();
  ASSERT_TRUE(output->flush(soon()).ok());
  EXPECT_EQ(fs::file_size(log), 3 * kEach);
}

}  // namespace
}  // namespace fvmm::devices
