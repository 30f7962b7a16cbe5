#include "net/channel.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace fvmm::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Pair = std::pair<std::unique_ptr<Channel>, std::unique_ptr<Channel>>;

Deadline soon() {
  return Deadline::after(seconds(20));
}

Pair tcp_pair() {
  auto listener = Listener::open({.host = "127.0.0.1", .port = 0});
  auto client = Channel::connect(listener.value().bound(), soon());
  auto server = Channel::adopt(listener->accept(soon()).value());
  return {std::move(client.value()), std::move(server.value())};
}

/// Buffers so small that most sends and receives come back short.
Pair narrow_pair() {
  std::array<int, 2> fds{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  const int bytes = 4096;
  for (const int fd : fds) EXPECT_EQ(::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
  auto a = Channel::adopt(UniqueFd(fds[0]));
  auto b = Channel::adopt(UniqueFd(fds[1]));
  return {std::move(a.value()), std::move(b.value())};
}

std::vector<std::byte> pattern(std::size_t bytes, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> out(bytes);
  for (std::byte& byte : out) byte = static_cast<std::byte>(random());
  return out;
}

/// Cuts memory into parts of 1 to `part_bytes_max` bytes.
std::vector<iovec> scatter(std::vector<std::byte>& memory, std::size_t part_bytes_max, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<iovec> parts;
  for (std::size_t at = 0; at < memory.size();) {
    const std::size_t step = std::min<std::size_t>(1 + random() % part_bytes_max, memory.size() - at);
    parts.push_back({memory.data() + at, step});
    at += step;
  }
  return parts;
}

TEST(Channel, MovesEverySizeWhole) {
  auto [client, server] = tcp_pair();
  for (const std::size_t bytes : {0ul, 1ul, 31ul, 32ul, 4095ul, 4096ul, 65'537ul, 1ul << 20, (8ul << 20) + 1}) {
    const auto out = pattern(bytes, 1);
    std::vector<std::byte> in(bytes);
    std::jthread sender([&, &from = *client] { EXPECT_TRUE(from.send(std::span(out), soon()).ok()); });
    ASSERT_TRUE(server->receive(std::span(in), soon()).ok()) << bytes;
    sender.join();
    EXPECT_EQ(in, out) << bytes;
  }
}

TEST(Channel, MovesThousandsOfPartsIntoThousandsOfOthers) {
  auto [client, server] = tcp_pair();
  auto out = pattern(6 << 20, 2);
  std::vector<std::byte> in(out.size());
  const auto from = scatter(out, 2000, 3);
  const auto into = scatter(in, 3000, 4);
  ASSERT_GT(from.size(), 4096u);
  ASSERT_GT(into.size(), 3072u);
  std::jthread sender([&, &channel = *client] { EXPECT_TRUE(channel.send(from, soon()).ok()); });
  ASSERT_TRUE(server->receive(into, soon()).ok());
  sender.join();
  EXPECT_EQ(in, out);
}

TEST(Channel, PartsAtTheSystemCallsLimitAndOnePastIt) {
  auto [client, server] = tcp_pair();
  for (const std::size_t count : {1024ul, 1025ul}) {
    auto out = pattern(count, 5);
    std::vector<std::byte> in(count);
    ASSERT_TRUE(client->send(scatter(out, 1, 6), soon()).ok());
    ASSERT_TRUE(server->receive(scatter(in, 1, 7), soon()).ok());
    EXPECT_EQ(in, out) << count;
  }
}

TEST(Channel, ShortSendsResumeWhereTheyStopped) {
  auto [a, b] = narrow_pair();
  auto out = pattern(1 << 20, 8);
  std::vector<std::byte> in(out.size());
  std::jthread sender([&, &from = *a] { EXPECT_TRUE(from.send(scatter(out, 9000, 9), soon()).ok()); });
  for (std::size_t at = 0; at < in.size();) {  // a slow reader: small, uneven bites
    const std::size_t bite = std::min<std::size_t>(1 + (at * 7) % 1500, in.size() - at);
    ASSERT_TRUE(b->receive(std::span(in).subspan(at, bite), soon()).ok());
    at += bite;
  }
  sender.join();
  EXPECT_EQ(in, out);
}

TEST(Channel, BothSidesSendMoreThanTheBuffersHoldAndThenReceive) {
  auto [a, b] = narrow_pair();
  auto run = [](Channel& channel, unsigned seed, unsigned peer_seed) {
    auto out = pattern(1 << 20, seed);
    std::vector<std::byte> in(out.size());
    ASSERT_TRUE(channel.start_send(scatter(out, 700, seed), soon()).ok());  // more than 1,024 parts: several requests
    ASSERT_TRUE(channel.receive(std::span(in), soon()).ok());
    ASSERT_TRUE(channel.finish_send(soon()).ok());
    EXPECT_EQ(in, pattern(1 << 20, peer_seed));
  };
  std::jthread other([&, &channel = *b] { run(channel, 11, 10); });
  run(*a, 10, 11);
}

TEST(Channel, ASecondStartFinishesTheFirst) {
  auto [client, server] = tcp_pair();
  auto first = pattern(1 << 20, 12);
  auto second = pattern(1 << 20, 13);
  std::vector<std::byte> in(2 << 20);
  std::jthread receiver([&, &channel = *server] { EXPECT_TRUE(channel.receive(std::span(in), soon()).ok()); });
  ASSERT_TRUE(client->start_send(scatter(first, 4096, 14), soon()).ok());
  ASSERT_TRUE(client->start_send(scatter(second, 4096, 15), soon()).ok());
  std::fill(first.begin(), first.end(), std::byte{0});  // free again: the first has left
  ASSERT_TRUE(client->finish_send(soon()).ok());
  receiver.join();
  const auto expected = pattern(1 << 20, 12);
  EXPECT_EQ(std::memcmp(in.data(), expected.data(), expected.size()), 0);
  EXPECT_EQ(std::memcmp(in.data() + expected.size(), second.data(), second.size()), 0);
}

TEST(Channel, TheIovecArrayMayGoAfterTheStart) {
  auto [a, b] = narrow_pair();
  auto out = pattern(256 * 1024, 16);
  std::vector<std::byte> in(out.size());
  {
    auto parts = scatter(out, 100, 17);
    ASSERT_TRUE(a->start_send(parts, soon()).ok());
    std::fill(parts.begin(), parts.end(), iovec{nullptr, 1});
  }
  std::jthread receiver([&, &channel = *b] { EXPECT_TRUE(channel.receive(std::span(in), soon()).ok()); });
  ASSERT_TRUE(a->finish_send(soon()).ok());
  receiver.join();
  EXPECT_EQ(in, out);
}

TEST(Channel, FinishWithoutAStartIsNothing) {
  auto [client, server] = tcp_pair();
  EXPECT_TRUE(client->finish_send(soon()).ok());
  EXPECT_TRUE(client->receive(std::span<std::byte>(), soon()).ok());
}

TEST(Channel, AdoptSetsTheOptionsOfAControlConnection) {
  auto [client, server] = tcp_pair();
  for (const auto& channel : {client.get(), server.get()}) {
    int value = 0;
    socklen_t bytes = sizeof value;
    ASSERT_EQ(::getsockopt(channel->fd(), IPPROTO_TCP, TCP_NODELAY, &value, &bytes), 0);
    EXPECT_EQ(value, 1);
    ASSERT_EQ(::getsockopt(channel->fd(), IPPROTO_TCP, TCP_USER_TIMEOUT, &value, &bytes), 0);
    EXPECT_GT(value, 0);
    ASSERT_EQ(::getsockopt(channel->fd(), SOL_SOCKET, SO_KEEPALIVE, &value, &bytes), 0);
    EXPECT_EQ(value, 1);
    EXPECT_EQ(::fcntl(channel->fd(), F_GETFL) & O_NONBLOCK, 0);
    EXPECT_NE(::fcntl(channel->fd(), F_GETFD) & FD_CLOEXEC, 0);
  }
}

TEST(Channel, AdoptRefusesWhatIsNotAConnectedStream) {
  EXPECT_EQ(Channel::adopt(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))).error().code(), Errc::kInvalidArgument);
  EXPECT_EQ(Channel::adopt(UniqueFd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))).error().code(),
            Errc::kUnavailable);
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds.data()), 0);
  EXPECT_EQ(Channel::adopt(UniqueFd(fds[0])).error().code(), Errc::kInvalidArgument);
  EXPECT_EQ(Channel::adopt(UniqueFd(fds[1])).error().code(), Errc::kInvalidArgument);
}

TEST(Channel, AdoptMakesANonBlockingSocketWait) {
  std::array<int, 2> fds{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds.data()), 0);
  auto a = Channel::adopt(UniqueFd(fds[0]));
  auto b = Channel::adopt(UniqueFd(fds[1]));
  std::array<std::byte, 1> in{};
  EXPECT_EQ((*a)->receive(std::span(in), Deadline::after(milliseconds(5))).error().code(), Errc::kDeadlineExceeded);
}

TEST(Channel, ReleaseHandsOverTheSocketWithAllUnreadBytes) {
  auto [client, server] = tcp_pair();
  const auto out = pattern(100, 18);
  ASSERT_TRUE(client->send(std::span(out), soon()).ok());
  std::array<std::byte, 40> head{};
  ASSERT_TRUE(server->receive(std::span(head), soon()).ok());
  UniqueFd socket = std::move(*server).release();
  EXPECT_EQ(server->fd(), -1);
  server->cancel();  // meets nobody's socket
  EXPECT_FALSE(server->receive(std::span(head), soon()).ok());
  auto next = Channel::adopt(std::move(socket));
  std::array<std::byte, 60> rest{};
  ASSERT_TRUE((*next)->receive(std::span(rest), soon()).ok());
  EXPECT_EQ(std::memcmp(rest.data(), out.data() + head.size(), rest.size()), 0);
}

TEST(Channel, MayMoveToAnotherThreadBetweenCalls) {
  auto [client, server] = tcp_pair();
  const auto out = pattern(1000, 19);
  for (int turn = 0; turn < 4; ++turn) {
    std::jthread([&, &channel = *client] { EXPECT_TRUE(channel.send(std::span(out), soon()).ok()); }).join();
    std::vector<std::byte> in(out.size());
    std::jthread([&, &channel = *server] { EXPECT_TRUE(channel.receive(std::span(in), soon()).ok()); }).join();
    EXPECT_EQ(in, out);
  }
}

}  // namespace
}  // namespace fvmm::net
