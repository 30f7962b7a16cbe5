// How a channel ends: deadline, cancel, a peer that goes away.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "net/channel.h"

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

/// More than both socket buffers hold, so that a send without a reader blocks.
std::vector<std::byte> flood() {
  return std::vector<std::byte>(48 << 20);
}

TEST(ChannelEnd, ReceiveDeadlineBreaksTheStream) {
  auto [client, server] = tcp_pair();
  const std::array<std::byte, 3> out{};
  ASSERT_TRUE(client->send(std::span(out), soon()).ok());
  pollfd there{.fd = server->fd(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&there, 1, 20'000), 1);
  std::array<std::byte, 10> in{};
  const auto late = server->receive(std::span(in), Deadline::after(milliseconds(5)));
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code(), Errc::kDeadlineExceeded);
  EXPECT_NE(late.error().message().find("3 of 10 bytes"), std::string::npos) << late.error().message();
  EXPECT_EQ(server->receive(std::span(in), soon()).error().code(), Errc::kUnavailable);
  EXPECT_EQ(server->send(std::span(out), soon()).error().code(), Errc::kUnavailable);
  EXPECT_EQ(client->receive(std::span(in), soon()).error().code(), Errc::kUnavailable);  // the peer learns at once
}

TEST(ChannelEnd, WhatIsThereIsReceivedEvenAfterTheDeadline) {
  auto [client, server] = tcp_pair();
  const std::array<std::byte, 3> out{};
  ASSERT_TRUE(client->send(std::span(out), soon()).ok());
  std::array<std::byte, 1> first{};
  ASSERT_TRUE(server->receive(std::span(first), soon()).ok());  // so all three have arrived
  std::array<std::byte, 2> rest{};
  EXPECT_TRUE(server->receive(std::span(rest), Deadline(SteadyTime::min())).ok());
}

TEST(ChannelEnd, SendDeadlineBreaksTheStream) {
  auto [client, server] = tcp_pair();
  const auto out = flood();
  EXPECT_EQ(client->send(std::span(out), Deadline::after(milliseconds(5))).error().code(), Errc::kDeadlineExceeded);
  EXPECT_EQ(client->send(std::span(out), soon()).error().code(), Errc::kUnavailable);
}

TEST(ChannelEnd, AfterAFailedReceiveTheKernelHasLetGoOfTheMemory) {
  auto [client, server] = tcp_pair();
  constexpr std::size_t kBytes = 1 << 20;
  void* memory = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  const std::span in(static_cast<std::byte*>(memory), kBytes);
  EXPECT_EQ(server->receive(in, Deadline::after(milliseconds(5))).error().code(), Errc::kDeadlineExceeded);
  const std::vector<std::byte> out(kBytes, std::byte{0xff});
  (void)client->send(std::span(out), Deadline::after(milliseconds(50)));  // refused or unread: never written there
  for (const std::byte byte : in) ASSERT_EQ(byte, std::byte{0});
  ::munmap(memory, kBytes);
}

TEST(ChannelEnd, PeerClosingInTheMiddleSaysHowFarItCame) {
  auto [client, server] = tcp_pair();
  const std::array<std::byte, 20> out{};
  ASSERT_TRUE(client->send(std::span(out), soon()).ok());
  client.reset();
  std::array<std::byte, 32> in{};
  const auto closed = server->receive(std::span(in), soon());
  ASSERT_FALSE(closed.ok());
  EXPECT_EQ(closed.error().code(), Errc::kUnavailable);
  EXPECT_NE(closed.error().message().find("closed by peer after 20 of 32 bytes"), std::string::npos)
      << closed.error().message();
  EXPECT_NE(closed.error().message().find("127.0.0.1:"), std::string::npos) << closed.error().message();
}

TEST(ChannelEnd, SendingToAClosedPeerFailsWithoutASignal) {
  auto [client, server] = tcp_pair();
  server.reset();
  const auto out = flood();
  EXPECT_EQ(client->send(std::span(out), soon()).error().code(), Errc::kUnavailable);
}

TEST(ChannelEnd, UnreadableMemoryIsAnErrorAndNotASignal) {
  auto [client, server] = tcp_pair();
  void* memory = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  const iovec part{memory, 4096};
  EXPECT_EQ(client->send(std::span(&part, 1), soon()).error().code(), Errc::kIo);
  ::munmap(memory, 4096);
}

TEST(ChannelEnd, AFailedSendIsReportedByTheNextSendAfterAReceive) {
  auto [client, server] = tcp_pair();
  const auto out = flood();
  const iovec part{const_cast<std::byte*>(out.data()), out.size()};
  const std::array<std::byte, 5> last_words{};
  ASSERT_TRUE(server->send(std::span(last_words), soon()).ok());
  ASSERT_TRUE(client->start_send(std::span(&part, 1), soon()).ok());
  std::array<std::byte, 5> in{};
  ASSERT_TRUE(client->receive(std::span(in), soon()).ok());
  server.reset();
  EXPECT_EQ(client->finish_send(soon()).error().code(), Errc::kUnavailable);
}

TEST(ChannelEnd, CancelBeforeACallEndsIt) {
  auto [client, server] = tcp_pair();
  server->cancel();
  std::array<std::byte, 1> bytes{};
  EXPECT_EQ(server->receive(std::span(bytes), soon()).error().code(), Errc::kCancelled);
  EXPECT_EQ(server->send(std::span(bytes), soon()).error().code(), Errc::kCancelled);
  EXPECT_EQ(server->finish_send(soon()).error().code(), Errc::kCancelled);
  EXPECT_EQ(client->receive(std::span(bytes), soon()).error().code(), Errc::kUnavailable);
}

// No wait for the other thread to block: cancel must work whenever it comes, and many turns cover the moments.
TEST(ChannelEnd, CancelEndsAReceiveWheneverItComes) {
  for (int turn = 0; turn < 100; ++turn) {
    auto [client, server] = tcp_pair();
    std::atomic<bool> started = false;
    std::jthread owner([&, &channel = *server] {
      std::array<std::byte, 16> in{};
      started = true;
      EXPECT_EQ(channel.receive(std::span(in), soon()).error().code(), Errc::kCancelled);
      EXPECT_EQ(channel.receive(std::span(in), soon()).error().code(), Errc::kCancelled);
    });
    while (!started) std::this_thread::yield();
    for (int spin = 0; spin < turn; ++spin) std::this_thread::yield();
    server->cancel();
    owner.join();
  }
}

TEST(ChannelEnd, CancelEndsABlockedSend) {
  const auto out = flood();
  for (int turn = 0; turn < 10; ++turn) {
    auto [client, server] = tcp_pair();
    std::atomic<bool> started = false;
    std::jthread owner([&, &channel = *client] {
      started = true;
      EXPECT_EQ(channel.send(std::span(out), soon()).error().code(), Errc::kCancelled);
    });
    while (!started) std::this_thread::yield();
    std::array<std::byte, 4096> in{};
    if (turn % 2 == 0) {  // surely under way
      EXPECT_TRUE(server->receive(std::span(in), soon()).ok());
    }
    client->cancel();
    owner.join();
  }
}

TEST(ChannelEnd, CancelEndsASendAndAReceiveInFlightTogether) {
  auto [client, server] = tcp_pair();
  const auto out = flood();
  std::jthread owner([&, &channel = *client] {
    const iovec part{const_cast<std::byte*>(out.data()), out.size()};
    std::array<std::byte, 16> in{};
    (void)channel.start_send(std::span(&part, 1), soon());
    EXPECT_EQ(channel.receive(std::span(in), soon()).error().code(), Errc::kCancelled);
  });
  std::array<std::byte, 4096> in{};
  EXPECT_TRUE(server->receive(std::span(in), soon()).ok());
  client->cancel();
}

TEST(ChannelEnd, ManyMayCancelAtOnce) {
  auto [client, server] = tcp_pair();
  std::vector<std::jthread> cancellers;
  cancellers.reserve(4);
  for (int i = 0; i < 4; ++i) cancellers.emplace_back([&channel = *server] { channel.cancel(); });
  std::array<std::byte, 1> in{};
  EXPECT_EQ(server->receive(std::span(in), soon()).error().code(), Errc::kCancelled);
}

TEST(ChannelEnd, DestroyingDropsAStartedSend) {
  auto [client, server] = tcp_pair();
  const auto out = flood();
  const iovec part{const_cast<std::byte*>(out.data()), out.size()};
  ASSERT_TRUE(client->start_send(std::span(&part, 1), soon()).ok());
  client.reset();
  std::vector<std::byte> in(out.size());
  EXPECT_EQ(server->receive(std::span(in), soon()).error().code(), Errc::kUnavailable);
}

TEST(ChannelEndDeathTest, ReleaseWithASendInFlightIsABrokenPromise) {
  auto [client, server] = tcp_pair();
  const auto out = flood();
  const iovec part{const_cast<std::byte*>(out.data()), out.size()};
  ASSERT_TRUE(client->start_send(std::span(&part, 1), soon()).ok());
  EXPECT_DEATH((void)std::move(*client).release(), "");
}

}  // namespace
}  // namespace fvmm::net
