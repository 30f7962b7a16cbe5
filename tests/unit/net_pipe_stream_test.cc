#include "net/pipe_stream.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

namespace fvmm::net {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline soon() {
  return Deadline::after(seconds(20));
}
Deadline brief() {
  return Deadline::after(milliseconds(5));
}

std::vector<std::byte> counted(std::size_t bytes) {
  std::vector<std::byte> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::byte>(i * 31 + i / 251);
  return out;
}

iovec part_of(const std::vector<std::byte>& bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

TEST(PipeStream, MovesMoreThanItsBufferHolds) {
  for (const std::size_t capacity : {1ul, 7ul, 4096ul}) {
    auto [a, b] = PipeStream::make({}, {}, capacity);
    const auto out = counted(10'000);
    std::vector<std::byte> in(out.size());
    std::jthread sender([&, &from = *a] { EXPECT_TRUE(from.send(std::span(out), soon()).ok()); });
    ASSERT_TRUE(b->receive(std::span(in), soon()).ok());
    EXPECT_EQ(in, out);
    sender.join();
    EXPECT_EQ(a->sent_bytes(), out.size());
  }
}

TEST(PipeStream, AStartedSendGoesOnWhileItsOwnerReceives) {
  auto run = [](PipeStream& end) {
    const auto out = counted(10'000);
    const iovec part = part_of(out);
    std::vector<std::byte> in(out.size());
    ASSERT_TRUE(end.start_send(std::span(&part, 1), soon()).ok());
    ASSERT_TRUE(end.receive(std::span(in), soon()).ok());
    ASSERT_TRUE(end.finish_send(soon()).ok());
    EXPECT_EQ(in, out);
  };
  auto [a, b] = PipeStream::make({}, {}, 16);
  std::jthread other([&, &end = *b] { run(end); });
  run(*a);
}

TEST(PipeStream, ThePeerPullsAStartedSendWithoutItsOwner) {
  auto [a, b] = PipeStream::make({}, {}, 16);
  const auto out = counted(1000);
  const iovec part = part_of(out);
  ASSERT_TRUE(a->start_send(std::span(&part, 1), soon()).ok());
  std::vector<std::byte> in(out.size());
  ASSERT_TRUE(b->receive(std::span(in), soon()).ok());  // one thread: nobody is in finish_send
  EXPECT_EQ(in, out);
  EXPECT_TRUE(a->finish_send(soon()).ok());
}

TEST(PipeStream, CutLetsExactlyTheScriptedBytesPass) {
  const auto out = counted(100);
  for (std::uint64_t at = 0; at <= out.size(); ++at) {
    auto [a, b] = PipeStream::make({.cut_after_bytes = at}, {}, 16);
    const iovec part = part_of(out);
    ASSERT_TRUE(a->start_send(std::span(&part, 1), soon()).ok());
    std::vector<std::byte> in(at);
    ASSERT_TRUE(b->receive(std::span(in), soon()).ok()) << at;
    EXPECT_TRUE(std::equal(in.begin(), in.end(), out.begin()));
    EXPECT_EQ(a->finish_send(soon()).ok(), at == out.size()) << at;
    std::array<std::byte, 1> more{};
    EXPECT_EQ(b->receive(std::span(more), soon()).error().code(), Errc::kUnavailable) << at;
    EXPECT_EQ(b->send(std::span(more), soon()).error().code(), Errc::kUnavailable) << at;  // both directions are gone
    EXPECT_EQ(a->send(std::span(more), soon()).error().code(), Errc::kUnavailable) << at;
  }
}

TEST(PipeStream, ACutStillDeliversWhatTheOtherDirectionHeld) {
  auto [a, b] = PipeStream::make({.cut_after_bytes = 1});
  std::array<std::byte, 3> bytes{};
  ASSERT_TRUE(b->send(std::span(bytes), soon()).ok());
  ASSERT_TRUE(a->send(std::span(bytes).first(1), soon()).ok());
  EXPECT_TRUE(a->receive(std::span(bytes), soon()).ok());
  EXPECT_EQ(a->receive(std::span(bytes), soon()).error().code(), Errc::kUnavailable);
}

TEST(PipeStream, CutNowEndsAWaitingReceive) {
  auto [a, b] = PipeStream::make();
  std::jthread owner([&, &end = *b] {
    std::array<std::byte, 1> in{};
    EXPECT_EQ(end.receive(std::span(in), soon()).error().code(), Errc::kUnavailable);
  });
  a->cut();
}

TEST(PipeStream, BothEndsLearnOfACutWithoutACall) {
  auto [a, b] = PipeStream::make();
  EXPECT_FALSE(a->closed_by_peer() || b->closed_by_peer());
  a->cut();
  EXPECT_TRUE(a->closed_by_peer() && b->closed_by_peer());
}

TEST(PipeStream, AStallWithholdsBytesUntilItEnds) {
  auto [a, b] = PipeStream::make({.stall_after_bytes = 3});
  const auto out = counted(5);
  ASSERT_TRUE(a->send(std::span(out), soon()).ok());  // the buffer takes them
  std::vector<std::byte> in(5);
  ASSERT_TRUE(b->receive(std::span(in).first(3), soon()).ok());
  a->unstall();
  ASSERT_TRUE(b->receive(std::span(in).last(2), soon()).ok());
  EXPECT_EQ(in, out);
}

TEST(PipeStream, AStallEndsInTheReceiversDeadlineAndBlocksAFullSender) {
  auto [a, b] = PipeStream::make({.stall_after_bytes = 3}, {}, 8);
  const auto out = counted(100);
  EXPECT_EQ(a->send(std::span(out), brief()).error().code(), Errc::kDeadlineExceeded);
  EXPECT_EQ(a->sent_bytes(), 8u);
  std::array<std::byte, 4> in{};
  EXPECT_EQ(b->receive(std::span(in), brief()).error().code(), Errc::kDeadlineExceeded);
  EXPECT_EQ(b->receive(std::span(in), brief()).error().code(), Errc::kUnavailable);  // broken since
}

TEST(PipeStream, CancelEndsAWaitAndEveryLaterCall) {
  auto [a, b] = PipeStream::make({}, {}, 8);
  std::jthread receiver([&, &end = *b] {
    std::array<std::byte, 1> in{};
    EXPECT_EQ(end.receive(std::span(in), soon()).error().code(), Errc::kCancelled);
    EXPECT_EQ(end.send(std::span(in), soon()).error().code(), Errc::kCancelled);
  });
  b->cancel();
  receiver.join();
  const auto out = counted(1);
  EXPECT_EQ(a->send(std::span(out), soon()).error().code(), Errc::kUnavailable);
}

TEST(PipeStream, CancelEndsABlockedSend) {
  auto [a, b] = PipeStream::make({}, {}, 8);
  const auto out = counted(100);
  std::jthread sender([&, &end = *a] { EXPECT_EQ(end.send(std::span(out), soon()).error().code(), Errc::kCancelled); });
  std::array<std::byte, 10> in{};
  EXPECT_TRUE(b->receive(std::span(in), soon()).ok());  // under way
  a->cancel();
}

TEST(PipeStream, ADestroyedEndReadsAsClosedByPeer) {
  auto [a, b] = PipeStream::make();
  const auto out = counted(2);
  ASSERT_TRUE(a->send(std::span(out), soon()).ok());
  EXPECT_FALSE(b->closed_by_peer());
  a.reset();
  EXPECT_TRUE(b->closed_by_peer()) << "although bytes are still to be received";
  std::array<std::byte, 4> in{};
  const auto closed = b->receive(std::span(in), soon());
  ASSERT_FALSE(closed.ok());
  EXPECT_EQ(closed.error().code(), Errc::kUnavailable);
  EXPECT_NE(closed.error().message().find("closed by peer after 2 of 4"), std::string::npos);
  EXPECT_EQ(b->send(std::span(in), soon()).error().code(), Errc::kUnavailable);
}

TEST(PipeStream, ADestroyedEndDropsItsUnfinishedSend) {
  auto [a, b] = PipeStream::make({}, {}, 8);
  {
    const auto out = counted(100);
    const iovec part = part_of(out);
    ASSERT_TRUE(a->start_send(std::span(&part, 1), soon()).ok());
    a.reset();
  }  // the memory is gone: nobody may read it now
  std::array<std::byte, 100> in{};
  EXPECT_EQ(b->receive(std::span(in), soon()).error().code(), Errc::kUnavailable);
}

}  // namespace
}  // namespace fvmm::net
