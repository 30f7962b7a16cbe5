// A VsockHub with a guest that tests play packet by packet, and programs at socket pairs. One thread, a clock that
// stands still.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "devices/vsock_hub.h"
#include "support/fake_vsock_host.h"

namespace fvmm::testing {

using devices::VsockHeader;
using devices::VsockOp;
using devices::VsockPorts;

inline constexpr std::uint32_t kVsockCid = 42;
inline constexpr std::uint32_t kVsockRoom = 1024 * 1024;  // of the guest, for a connection

/// A packet for the guest.
struct Got {
  VsockHeader header;
  std::string data;
};

class VsockHubTest : public ::testing::Test {
 protected:
  VsockHubTest() { EXPECT_TRUE(hub.listen().ok()); }

  /// What has happened at the programs' sockets reaches the hub.
  void turn(bool guest_there = true) {
    std::vector<pollfd> fds;
    hub.watch(fds);
    (void)::poll(fds.data(), fds.size(), 0);
    hub.look(fds, guest_there);
  }
  Got next(std::size_t room = 64 * 1024) {
    std::vector<std::byte> data(room);
    const auto header = hub.next(data);
    if (!header) return {};
    EXPECT_EQ(header->dst_cid, kVsockCid);
    EXPECT_EQ(header->type, devices::kVsockStream);
    return {*header, std::string(reinterpret_cast<const char*>(data.data()), header->len)};
  }
  VsockOp next_op() { return next().header.op; }
  static VsockHeader packet(VsockOp op, VsockPorts ports) {
    return {.src_cid = kVsockCid,
            .dst_cid = devices::kVsockHostCid,
            .src_port = ports.guest,
            .dst_port = ports.host,
            .op = op,
            .buf_alloc = kVsockRoom};
  }
  void send(const VsockHeader& header, std::string_view data = {}) {
    VsockHeader sent = header;
    sent.len = static_cast<std::uint32_t>(data.size());
    hub.receive(sent, std::as_bytes(std::span(data)));
  }
  void send(VsockOp op, VsockPorts ports) { send(packet(op, ports)); }
  void send_data(VsockPorts ports, std::string_view data) { send(packet(VsockOp::kRw, ports), data); }
  void shut_down(VsockPorts ports, std::uint32_t flags) {
    VsockHeader header = packet(VsockOp::kShutdown, ports);
    header.flags = flags;
    send(header);
  }

  /// A program that the guest has answered, and the connection's ports.
  struct Open {
    Program program;
    VsockPorts ports;
  };
  Open open_to_guest(std::uint32_t port = 5, std::uint32_t room = kVsockRoom) {
    Open open{.program = programs->call("CONNECT " + std::to_string(port) + "\n"), .ports = {}};
    turn();
    turn();
    const Got request = next();
    EXPECT_EQ(request.header.op, VsockOp::kRequest);
    open.ports = {.host = request.header.src_port, .guest = request.header.dst_port};
    VsockHeader response = packet(VsockOp::kResponse, open.ports);
    response.buf_alloc = room;
    send(response);
    EXPECT_EQ(open.program.receive_line(), "OK " + std::to_string(open.ports.host));
    return open;
  }
  Open open_from_guest(std::uint32_t guest_port = 1000) {
    programs->listen(80);
    const VsockPorts ports{.host = 80, .guest = guest_port};
    send(VsockOp::kRequest, ports);
    EXPECT_EQ(next_op(), VsockOp::kResponse);
    return {.program = programs->accept(80), .ports = ports};
  }
  /// So much that neither the program's socket nor the guest's room here takes one byte more.
  std::size_t fill_up(const Open& open) {
    std::size_t sent = 0;
    std::size_t forwarded = 0;
    while (sent - forwarded < devices::kVsockBufferBytes) {
      const std::string piece(std::min<std::size_t>(4096, devices::kVsockBufferBytes - (sent - forwarded)), 'x');
      send_data(open.ports, piece);
      sent += piece.size();
      send(VsockOp::kCreditRequest, open.ports);
      const Got answer = next();
      EXPECT_EQ(answer.header.op, VsockOp::kCreditUpdate);
      if (answer.header.op != VsockOp::kCreditUpdate) return 0;
      forwarded = answer.header.fwd_cnt;
    }
    return sent;
  }

  SteppedClock clock;
  std::shared_ptr<Programs> programs = std::make_shared<Programs>();
  devices::VsockHub hub{
      {.guest_cid = kVsockCid, .host = std::make_unique<FakeVsockHost>(programs), .clock = clock, .first_port = 7}};
};

}  // namespace fvmm::testing
