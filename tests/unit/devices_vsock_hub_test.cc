// Whom a packet of the guest is for, which programs are turned away, and what is limited. One connection's life is in
// devices_vsock_connection_test.cc.
#include "devices/vsock_hub.h"

#include <gtest/gtest.h>

#include "support/vsock_hub_test.h"

namespace fvmm::devices {
namespace {

using std::chrono::milliseconds;
using testing::Got;
using testing::Program;

constexpr std::uint32_t kCid = testing::kVsockCid;

class Hub : public testing::VsockHubTest {};

TEST_F(Hub, AProgramReachesAPortOfTheGuest) {
  const Program program = programs->call("CONNECT 5\n");
  turn();
  turn();
  const Got request = next();
  EXPECT_EQ(request.header.op, VsockOp::kRequest);
  EXPECT_EQ(request.header.src_cid, kVsockHostCid);
  EXPECT_EQ(request.header.dst_port, 5U);
  EXPECT_EQ(request.header.buf_alloc, kVsockBufferBytes);
  EXPECT_FALSE(program.readable()) << "no OK before the guest's answer";
  const VsockPorts ports{.host = request.header.src_port, .guest = 5};
  send(VsockOp::kResponse, ports);
  EXPECT_EQ(program.receive_line(), "OK " + std::to_string(ports.host));
  send_data(ports, "from the guest");
  EXPECT_EQ(program.receive(14), "from the guest");
  program.send("to the guest");
  turn();
  const Got data = next();
  EXPECT_EQ(data.header.op, VsockOp::kRw);
  EXPECT_EQ(data.data, "to the guest");
  EXPECT_EQ(data.header.fwd_cnt, 14U) << "the line that answers CONNECT is not the guest's";
  EXPECT_EQ(hub.counters().opened, 1U);
  EXPECT_EQ(hub.counters().sent_bytes, 14U);
  EXPECT_EQ(hub.counters().received_bytes, 12U);
}

TEST_F(Hub, WhatComesBehindTheLineIsForTheGuest) {
  const Program program = programs->call("CONNECT 5\r\nhello\n");
  turn();
  turn();
  const VsockPorts ports{.host = next().header.src_port, .guest = 5};
  turn();
  EXPECT_EQ(next_op(), VsockOp::kInvalid) << "not before the guest has taken the connection";
  send(VsockOp::kResponse, ports);
  turn();
  EXPECT_EQ(next().data, "hello\n");
}

TEST_F(Hub, AGuestThatRefusesClosesTheProgram) {
  const Program program = programs->call("CONNECT 5\n");
  turn();
  turn();
  send(VsockOp::kRst, {.host = next().header.src_port, .guest = 5});
  EXPECT_TRUE(program.at_end());
  EXPECT_EQ(hub.counters().refused, 1U);
  EXPECT_EQ(hub.counters().connections, 0U);
  EXPECT_FALSE(hub.has_packet()) << "a reset is not answered";
}

TEST_F(Hub, AGuestThatNeverAnswersIsGivenUp) {
  const Program program = programs->call("CONNECT 5\n");
  turn();
  turn();
  EXPECT_EQ(next_op(), VsockOp::kRequest);
  clock.step(kVsockAnswerWait - milliseconds(1));
  turn();
  EXPECT_FALSE(program.readable());
  EXPECT_EQ(hub.wait_ms(), 1);
  clock.step(milliseconds(1));
  turn();
  EXPECT_TRUE(program.at_end());
  EXPECT_EQ(next_op(), VsockOp::kRst);
  turn();
  EXPECT_EQ(hub.wait_ms(), -1) << "there is nothing to wait for";
}

TEST_F(Hub, TimeInWhichTheGuestWasPausedDoesNotCount) {
  const Program program = programs->call("CONNECT 5\n");
  turn();
  turn();
  EXPECT_EQ(next_op(), VsockOp::kRequest);
  clock.step(std::chrono::hours(1));
  hub.postpone(std::chrono::hours(1));
  turn();
  EXPECT_EQ(hub.counters().connections, 1U);
}

TEST_F(Hub, AProgramThatGivesUpTakesItsRequestBack) {
  Program early = programs->call("CONNECT 5\n");
  Program late = programs->call("CONNECT 6\n");
  turn();
  turn();
  EXPECT_EQ(next().header.dst_port, 5U);
  early.close();
  late.close();
  turn();
  const Got reset = next();
  EXPECT_EQ(reset.header.op, VsockOp::kRst);
  EXPECT_EQ(reset.header.dst_port, 5U);
  EXPECT_EQ(next_op(), VsockOp::kInvalid) << "the guest has never heard of the other";
}

TEST_F(Hub, WhatIsNoConnectIsClosed) {
  for (const std::string& line :
       {std::string("HELLO\n"), std::string("CONNECT\n"), std::string("CONNECT \n"), std::string("CONNECT x\n"),
        std::string("CONNECT 5 6\n"), std::string("\n"), std::string("CONNECT 4294967296\n"),
        std::string("CONNECT -1\n"), std::string(kVsockLineBytesMax, ' ')}) {
    const Program program = programs->call(line);
    turn();
    turn();
    EXPECT_TRUE(program.at_end()) << line;
    EXPECT_FALSE(hub.has_packet()) << line;
  }
  const Program longest = programs->call(std::string("CONNECT ") + std::string(kVsockLineBytesMax - 10, '0') + "1\n");
  turn();
  turn();
  EXPECT_EQ(next().header.dst_port, 1U) << "a line of exactly the limit";
}

TEST_F(Hub, ALineMayComeInPiecesButNotForEver) {
  const Program program = programs->call("CONN");
  const Program slow = programs->call("CONNECT 6");
  turn();
  turn();
  program.send("ECT 5\n");
  turn();
  EXPECT_EQ(next().header.dst_port, 5U);
  clock.step(kVsockLineWait);
  turn();
  EXPECT_TRUE(slow.at_end());
  EXPECT_FALSE(hub.has_packet() && next_op() == VsockOp::kRequest);
}

TEST_F(Hub, WithoutADriverProgramsAreTurnedAway) {
  const Program program = programs->call("CONNECT 5\n");
  turn(false);
  turn(false);
  EXPECT_TRUE(program.at_end());
  EXPECT_EQ(hub.counters().refused, 1U);
}

TEST_F(Hub, TheGuestReachesAProgram) {
  Open open = open_from_guest();
  send_data(open.ports, "hello");
  EXPECT_EQ(open.program.receive(5), "hello") << "and no line before it";
  open.program.send("there");
  turn();
  EXPECT_EQ(next().data, "there");
  EXPECT_EQ(hub.counters().opened, 1U);
}

TEST_F(Hub, WhereNobodyListensTheGuestIsReset) {
  send(VsockOp::kRequest, {.host = 81, .guest = 1000});
  const Got reset = next();
  EXPECT_EQ(reset.header.op, VsockOp::kRst);
  EXPECT_EQ(reset.header.src_port, 81U);
  EXPECT_EQ(reset.header.dst_port, 1000U);
  EXPECT_EQ(hub.counters().refused, 1U);
}

TEST_F(Hub, PacketsForNobodyAreAnsweredWithAReset) {
  for (const VsockOp op : {VsockOp::kInvalid, VsockOp::kResponse, VsockOp::kShutdown, VsockOp::kRw,
                           VsockOp::kCreditUpdate, VsockOp::kCreditRequest, static_cast<VsockOp>(0xffff)}) {
    send(op, {.host = 9, .guest = 8});
    const Got reset = next();
    EXPECT_EQ(reset.header.op, VsockOp::kRst);
    EXPECT_EQ(reset.header.src_cid, kVsockHostCid);
    EXPECT_EQ(reset.header.src_port, 9U);
    EXPECT_EQ(reset.header.dst_port, 8U);
  }
  send(VsockOp::kRst, {.host = 9, .guest = 8});
  EXPECT_FALSE(hub.has_packet());
}

TEST_F(Hub, PacketsToOthersAndOfOtherTypesAreAnsweredWithAReset) {
  programs->listen(80);
  VsockHeader elsewhere = packet(VsockOp::kRequest, {.host = 80, .guest = 1});
  elsewhere.dst_cid = 99;
  send(elsewhere);
  EXPECT_EQ(next().header.src_cid, 99U);
  VsockHeader packets = packet(VsockOp::kRequest, {.host = 80, .guest = 1});
  packets.type = 2;  // SEQPACKET
  send(packets);
  EXPECT_EQ(next_op(), VsockOp::kRst);
  EXPECT_EQ(hub.counters().opened, 0U);
}

TEST_F(Hub, PacketsFromOthersAreCountedAndForgotten) {
  programs->listen(80);
  VsockHeader forged = packet(VsockOp::kRequest, {.host = 80, .guest = 1});
  forged.src_cid = kCid + 1;
  send(forged);
  forged.src_cid = kCid | 1ULL << 32;
  send(forged);
  EXPECT_FALSE(hub.has_packet());
  EXPECT_EQ(hub.counters().strays, 2U);
}

TEST_F(Hub, WhatMakesNoSenseEndsItsConnectionAndNoOther) {
  Open other = open_to_guest(6);
  for (const VsockOp op : {VsockOp::kInvalid, VsockOp::kRequest, VsockOp::kResponse, static_cast<VsockOp>(8)}) {
    const Open open = open_to_guest();
    send(op, open.ports);
    EXPECT_EQ(next_op(), VsockOp::kRst);
    EXPECT_TRUE(open.program.at_end());
  }
  for (const VsockOp op : {VsockOp::kRw, VsockOp::kShutdown, VsockOp::kRequest}) {
    const Program program = programs->call("CONNECT 5\n");
    turn();
    turn();
    send(op, {.host = next().header.src_port, .guest = 5});
    EXPECT_EQ(next_op(), VsockOp::kRst) << "before it has answered";
    EXPECT_TRUE(program.at_end());
  }
  send_data(other.ports, "unharmed");
  EXPECT_EQ(other.program.receive(8), "unharmed");
}

TEST_F(Hub, ConnectionsOfBothKindsAreLimited) {
  std::vector<Open> opened;
  for (std::uint32_t i = 0; i < kVsockConnectionsMax - 1; ++i) opened.push_back(open_from_guest(1000 + i));
  const Program last = programs->call("CONNECT 5\n");
  turn();
  const Program too_many = programs->call("CONNECT 5\n");
  turn();
  EXPECT_TRUE(too_many.at_end());
  EXPECT_EQ(next_op(), VsockOp::kRequest) << "of the last that there is room for";
  send(VsockOp::kRequest, {.host = 80, .guest = 999});
  EXPECT_EQ(next_op(), VsockOp::kRst);
  EXPECT_EQ(hub.counters().connections, kVsockConnectionsMax);
  EXPECT_EQ(hub.counters().refused, 2U);
  send(VsockOp::kRst, opened.front().ports);
  send(VsockOp::kRequest, {.host = 80, .guest = 999});
  EXPECT_EQ(next_op(), VsockOp::kResponse);
}

TEST_F(Hub, ResetsThatAreOwedAreLimited) {
  for (std::uint32_t i = 0; i < kVsockResetsMax; ++i) {
    EXPECT_FALSE(hub.full());
    send(VsockOp::kRw, {.host = 9, .guest = i});
  }
  EXPECT_TRUE(hub.full());
  EXPECT_EQ(next().header.dst_port, 0U) << "in order";
  EXPECT_FALSE(hub.full());
}

TEST_F(Hub, ConnectionsTakeTurns) {
  Open one = open_to_guest(5);
  Open other = open_to_guest(6);
  for (const Open* open : {&one, &other}) open->program.send(std::string(100, 'x'));
  turn();
  std::string order;
  for (int i = 0; i < 6; ++i) order += next(10).header.dst_port == 5 ? '5' : '6';
  EXPECT_TRUE(order == "565656" || order == "656565") << order;
}

TEST_F(Hub, AGuestThatIsForgottenIsToldNothing) {
  Open open = open_to_guest();
  open.program.send("data");
  send(VsockOp::kRw, {.host = 9, .guest = 8});
  turn();
  hub.forget_guest();
  EXPECT_TRUE(open.program.at_end());
  EXPECT_FALSE(hub.has_packet());
}

TEST_F(Hub, WithoutDescriptorsItTriesAgainLater) {
  programs->fail_accept(true);
  const Program program = programs->call("CONNECT 5\n");
  turn();
  programs->fail_accept(false);
  std::vector<pollfd> fds;
  hub.watch(fds);
  EXPECT_EQ(fds.front().fd, -1) << "it would be told at once, again and again";
  EXPECT_EQ(hub.wait_ms(), kVsockAcceptRetry.count());
  clock.step(kVsockAcceptRetry);
  for (int i = 0; i < 3; ++i) turn();
  EXPECT_EQ(next_op(), VsockOp::kRequest);
}

TEST_F(Hub, AClosedHubKnowsNobody) {
  Open open = open_to_guest();
  const Program waiting = programs->call("CONN");
  turn();
  hub.close();
  EXPECT_TRUE(open.program.at_end());
  EXPECT_TRUE(waiting.at_end());
  EXPECT_FALSE(programs->listening());
}

TEST(VsockPacket, GoesThroughItsBytes) {
  const VsockHeader header{.src_cid = 0x0102030405060708,
                           .dst_cid = 2,
                           .src_port = 0x11121314,
                           .dst_port = 0x21222324,
                           .len = 0x31323334,
                           .type = 1,
                           .op = VsockOp::kShutdown,
                           .flags = 3,
                           .buf_alloc = 0x41424344,
                           .fwd_cnt = 0x51525354};
  const VsockHeaderBytes bytes = encode_vsock(header);
  EXPECT_EQ(decode_vsock(bytes), header);
  EXPECT_EQ(bytes[0], std::byte{8}) << "little endian";
  EXPECT_EQ(bytes[16], std::byte{0x14});
  EXPECT_EQ(bytes[28], std::byte{1});
  EXPECT_EQ(bytes[30], std::byte{4});
  EXPECT_EQ(bytes[43], std::byte{0x51});
}

}  // namespace
}  // namespace fvmm::devices
