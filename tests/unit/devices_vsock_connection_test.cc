// One connection's life: credit, halves, ends. Whom packets are for is in devices_vsock_hub_test.cc.
#include "devices/vsock_connection.h"

#include <gtest/gtest.h>

#include "support/vsock_hub_test.h"

namespace fvmm::devices {
namespace {

using std::chrono::milliseconds;
using testing::Got;
using testing::Program;

class VsockConnections : public testing::VsockHubTest {};

TEST_F(VsockConnections, TheGuestGetsNoMoreThanItHasRoomFor) {
  Open open = open_to_guest(5, 10);
  open.program.send("0123456789abcdef");
  turn();
  EXPECT_EQ(next().data, "0123456789");
  EXPECT_EQ(next_op(), VsockOp::kCreditRequest);
  turn();
  EXPECT_EQ(next_op(), VsockOp::kInvalid);
  VsockHeader update = packet(VsockOp::kCreditUpdate, open.ports);
  update.buf_alloc = 10;
  update.fwd_cnt = 4;
  send(update);
  turn();
  EXPECT_EQ(next().data, "abcd");
  update.fwd_cnt = 14;
  send(update);
  turn();
  EXPECT_EQ(next().data, "ef");
  EXPECT_EQ(next_op(), VsockOp::kInvalid) << "it need not be asked any more";
}

TEST_F(VsockConnections, LiesAboutRoomOnlyStopTheLiar) {
  Open open = open_to_guest(5, 0);
  open.program.send("data");
  for (const auto& [room, forwarded] : {std::pair{0U, 0U}, std::pair{10U, 1U}, std::pair{0xffffffffU, 1U},
                                        std::pair{0U, 0xffffffffU}, std::pair{1U, 0xffffffffU}}) {
    VsockHeader update = packet(VsockOp::kCreditUpdate, open.ports);
    update.buf_alloc = room;
    update.fwd_cnt = forwarded;
    send(update);
    turn();
    EXPECT_EQ(next_op(), VsockOp::kInvalid) << room << " " << forwarded;
  }
  send(VsockOp::kCreditUpdate, open.ports);
  turn();
  EXPECT_EQ(next().data, "data");
}

TEST_F(VsockConnections, APacketIsNoLongerThanItsBuffer) {
  Open open = open_to_guest();
  open.program.send("0123456789");
  turn();
  EXPECT_EQ(next(4).data, "0123");
  EXPECT_EQ(next(4).data, "4567");
  EXPECT_EQ(next(4).data, "89");
}

TEST_F(VsockConnections, TheGuestMayFillItsRoomAndNotAByteMore) {
  Open open = open_to_guest();
  const std::size_t sent = fill_up(open);
  ASSERT_GT(sent, kVsockBufferBytes);
  EXPECT_EQ(hub.counters().connections, 1U);
  send_data(open.ports, "y");
  EXPECT_EQ(next_op(), VsockOp::kRst);
  EXPECT_EQ(hub.counters().connections, 0U);
}

TEST_F(VsockConnections, TheGuestIsToldOfRoomThatItGetsBack) {
  Open open = open_to_guest();
  const std::size_t sent = fill_up(open);
  EXPECT_FALSE(hub.has_packet());
  EXPECT_EQ(open.program.receive(sent - kVsockBufferBytes).size(), sent - kVsockBufferBytes);
  turn();
  const Got update = next();
  EXPECT_EQ(update.header.op, VsockOp::kCreditUpdate);
  EXPECT_GT(update.header.fwd_cnt, sent - kVsockBufferBytes);
  EXPECT_EQ(update.header.buf_alloc, kVsockBufferBytes);
}

TEST_F(VsockConnections, AProgramThatStopsSendingStillListens) {
  Open open = open_to_guest();
  open.program.send("last words");
  open.program.shut_sending();
  turn();
  EXPECT_EQ(next().data, "last words");
  const Got end = next();
  EXPECT_EQ(end.header.op, VsockOp::kShutdown);
  EXPECT_EQ(end.header.flags, kVsockNoSend);
  send_data(open.ports, "answer");
  EXPECT_EQ(open.program.receive(6), "answer");
  shut_down(open.ports, kVsockNeither);
  EXPECT_EQ(next_op(), VsockOp::kRst);
  EXPECT_TRUE(open.program.at_end());
}

TEST_F(VsockConnections, AGuestThatStopsSendingStillListens) {
  Open open = open_to_guest();
  send_data(open.ports, "last words");
  shut_down(open.ports, kVsockNoSend);
  EXPECT_EQ(open.program.receive(100), "last words") << "and then the end";
  open.program.send("answer");
  turn();
  EXPECT_EQ(next().data, "answer");
  send_data(open.ports, "more");
  EXPECT_EQ(next_op(), VsockOp::kRst) << "it has said that it would not";
}

TEST_F(VsockConnections, AGuestThatDoesNotListenIsNotSentTo) {
  Open open = open_to_guest();
  shut_down(open.ports, kVsockNoReceive);
  turn();
  EXPECT_EQ(next_op(), VsockOp::kInvalid);
  EXPECT_LT(::send(open.program.fd(), "x", 1, MSG_NOSIGNAL), 0) << "and the program notices";
  send_data(open.ports, "still");
  EXPECT_EQ(open.program.receive(5), "still");
}

TEST_F(VsockConnections, ACleanDisconnectIsAnsweredWhenTheProgramHasEverything) {
  Open open = open_to_guest();
  const std::size_t sent = fill_up(open);
  shut_down(open.ports, kVsockNeither);
  EXPECT_FALSE(hub.has_packet());
  std::size_t got = 0;
  while (got < sent) {
    const std::size_t part = open.program.receive(std::min<std::size_t>(sent - got, 4096)).size();
    ASSERT_GT(part, 0U);
    got += part;
    turn();
  }
  EXPECT_TRUE(open.program.at_end());
  EXPECT_EQ(next_op(), VsockOp::kRst);
}

TEST_F(VsockConnections, AProgramThatClosesIsHeardToTheEnd) {
  Open open = open_to_guest();
  open.program.send("last words");
  open.program.close();
  turn();
  EXPECT_EQ(next().header.op, VsockOp::kRw);
  const Got end = next();
  EXPECT_EQ(end.header.op, VsockOp::kShutdown);
  EXPECT_EQ(end.header.flags, kVsockNeither);
  send_data(open.ports, "too late");
  EXPECT_EQ(next_op(), VsockOp::kInvalid) << "it could not know";
  send(VsockOp::kRst, open.ports);
  EXPECT_EQ(hub.counters().connections, 0U);
}

TEST_F(VsockConnections, AProgramThatClosesWithoutReadingIsHeardToTheEnd) {
  Open open = open_to_guest();
  send_data(open.ports, "unread");
  open.program.send("last words");
  open.program.close();
  turn();
  std::string heard;
  VsockHeader end;
  while (hub.has_packet()) {
    const Got got = next();
    heard += got.data;
    if (got.header.op == VsockOp::kShutdown) end = got.header;
  }
  EXPECT_EQ(heard, "last words");
  EXPECT_EQ(end.flags, kVsockNeither);
}

TEST_F(VsockConnections, AProgramThatClosesIsNoticedWithoutRoomAtTheGuest) {
  Open open = open_to_guest(5, 0);
  open.program.close();
  turn();
  const Got end = next();
  EXPECT_EQ(end.header.op, VsockOp::kShutdown);
  EXPECT_EQ(end.header.flags, kVsockNeither);
}

TEST_F(VsockConnections, AGuestThatDoesNotAnswerADisconnectIsReset) {
  Open open = open_to_guest();
  open.program.close();
  turn();
  EXPECT_EQ(next_op(), VsockOp::kShutdown);
  clock.step(kVsockCloseWait - milliseconds(1));
  turn();
  EXPECT_EQ(hub.counters().connections, 1U);
  clock.step(milliseconds(1));
  turn();
  EXPECT_EQ(next_op(), VsockOp::kRst);
  EXPECT_EQ(hub.counters().connections, 0U);
}

TEST_F(VsockConnections, AResetOfTheGuestBringsWhatTheProgramTakesAtOnce) {
  Open open = open_to_guest();
  send_data(open.ports, "last words");
  send(VsockOp::kRst, open.ports);
  EXPECT_EQ(open.program.receive(100), "last words");
  EXPECT_FALSE(hub.has_packet());
}

}  // namespace
}  // namespace fvmm::devices
