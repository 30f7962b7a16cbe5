// virtio-vsock behind its transport: queues, pauses, moves and the output gate. What connections do is in
// devices_vsock_hub_test.cc, what every virtio device promises in devices_virtio_conformance_test.cc.
#include "devices/virtio_vsock.h"

#include <gtest/gtest.h>

#include <thread>

#include "devices/virtio_mmio.h"
#include "support/fake_vsock_host.h"
#include "support/virtio_driver.h"

namespace fvmm::devices {
namespace {

using namespace virtio;
using testing::kDriverBuffers;
using testing::Program;

constexpr std::chrono::seconds kWait{30};
constexpr std::uint32_t kCid = 42;
constexpr unsigned kReceive = 0;
constexpr unsigned kTransmit = 1;
constexpr unsigned kEvent = 2;
constexpr std::uint32_t kBufferBytes = 2048;
constexpr std::uint64_t kPackets = 8 * kMiB;  // of the guest
constexpr std::uint64_t kEventBuffer = 9 * kMiB;

struct Got {
  VsockHeader header;
  std::string data;
};

/// The device behind its transport, with programs of its own.
struct Specimen {
  Specimen(memory::GuestMemory& memory, OutputGate& gate) {
    auto made = std::make_unique<VirtioVsock>(VirtioVsockSetup{
        .hub = {.guest_cid = kCid, .host = std::make_unique<testing::FakeVsockHost>(programs)}, .gate = gate});
    vsock = made.get();
    device = std::make_unique<VirtioMmio>("virtio0", VirtioMmio::Surroundings{.memory = memory, .line = line},
                                          std::move(made));
  }
  std::shared_ptr<testing::Programs> programs = std::make_shared<testing::Programs>();
  testing::FakeIrqLine line;
  VirtioVsock* vsock;
  std::unique_ptr<VirtioMmio> device;
};

class Vsock : public ::testing::Test {
 protected:
  Vsock() { here->device->resume(); }

  void start(unsigned buffers = 64) {
    driver.start(1);
    sent_before_ = sent_;
    offer_receive(buffers);
  }
  void offer_receive(unsigned count, std::uint32_t bytes = kBufferBytes) {
    for (unsigned i = 0; i < count; ++i) {
      const auto index = static_cast<std::uint16_t>(offered_++ % kVsockQueueSize);
      driver.describe(kReceive, index,
                      {.address = kDriverBuffers + 4096ULL * index, .bytes = bytes, .flags = kDescriptorWrite});
      driver.offer(kReceive, index);
    }
    driver.notify(kReceive);
  }
  void offer_event(std::uint32_t bytes = 4) {
    driver.put(kEventBuffer, std::uint32_t{0xffff'ffff});
    driver.send(kEvent, 0, {.address = kEventBuffer, .bytes = bytes, .flags = kDescriptorWrite});
  }
  std::optional<testing::VirtioDriver::Used> answer(unsigned queue) {
    const Deadline deadline = Deadline::after(kWait);
    for (;;) {
      if (auto used = driver.take_used(queue)) return used;
      if (deadline.passed()) return std::nullopt;
      std::this_thread::yield();
    }
  }
  Got received() {
    const auto used = answer(kReceive);
    if (!used) return {};
    const std::uint64_t at = kDriverBuffers + 4096ULL * used->head;
    VsockHeaderBytes raw{};
    EXPECT_TRUE(memory->read(at, raw).ok());
    const VsockHeader header = decode_vsock(raw);
    EXPECT_EQ(used->bytes, kVsockHeaderBytes + header.len);
    return {header, driver.text(at + kVsockHeaderBytes, header.len)};
  }
  /// Header and data in one buffer; not waited for.
  void send(const VsockHeader& header, std::string_view data = {}) {
    const auto index = static_cast<std::uint16_t>(sent_++ % kVsockQueueSize);
    const std::uint64_t at = kPackets + 4096ULL * index;
    VsockHeader sent = header;
    if (sent.len == 0) sent.len = static_cast<std::uint32_t>(data.size());
    ASSERT_TRUE(memory->write(at, encode_vsock(sent)).ok());
    ASSERT_TRUE(memory->write(at + kVsockHeaderBytes, std::as_bytes(std::span(data))).ok());
    driver.send(kTransmit, index,
                {.address = at, .bytes = static_cast<std::uint32_t>(kVsockHeaderBytes + data.size())});
  }
  void send(VsockOp op, VsockPorts ports, std::string_view data = {}) { send(packet(op, ports), data); }
  /// The device has taken all packets but so many.
  void expect_taken(unsigned all_but = 0) {
    const auto expected = static_cast<std::uint16_t>(sent_ - sent_before_ - all_but);
    const Deadline deadline = Deadline::after(kWait);
    while (driver.used_index(kTransmit) != expected && !deadline.passed()) std::this_thread::yield();
    settle();
    EXPECT_EQ(driver.used_index(kTransmit), expected);
  }
  static VsockHeader packet(VsockOp op, VsockPorts ports) {
    return {.src_cid = kCid,
            .dst_cid = kVsockHostCid,
            .src_port = ports.guest,
            .dst_port = ports.host,
            .op = op,
            .buf_alloc = 65536};
  }
  struct Open {
    Program program;
    VsockPorts ports;
  };
  Open open_to_guest() {
    Open open{.program = here->programs->call("CONNECT 5\n"), .ports = {}};
    const Got request = received();
    EXPECT_EQ(request.header.op, VsockOp::kRequest);
    open.ports = {.host = request.header.src_port, .guest = 5};
    send(VsockOp::kResponse, open.ports);
    EXPECT_EQ(open.program.receive_line(), "OK " + std::to_string(open.ports.host));
    return open;
  }
  void quiesce() { ASSERT_TRUE(here->device->quiesce(Deadline::after(kWait)).ok()); }
  /// Everything that was begun is done.
  void settle() {
    quiesce();
    here->device->resume();
  }
  void expect_needs_reset() {
    const Deadline deadline = Deadline::after(kWait);
    while (!driver.needs_reset() && !deadline.passed()) std::this_thread::yield();
    EXPECT_TRUE(driver.needs_reset());
  }
  /// The guest goes on with another device, as another host or a clone has it. The one that it left is still there.
  std::unique_ptr<Specimen> move() {
    quiesce();
    auto there = std::make_unique<Specimen>(*memory, gate);
    const Status loaded = there->device->load(here->device->save());
    EXPECT_TRUE(loaded.ok()) << loaded.error().message();
    std::swap(here, there);
    driver.move_to(*here->device);
    here->device->resume();
    return there;
  }

  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  OutputGate gate{1024, 4};
  std::unique_ptr<Specimen> here = std::make_unique<Specimen>(*memory, gate);
  testing::VirtioDriver driver{*here->device, *memory};

 private:
  unsigned offered_ = 0;
  unsigned sent_ = 0;
  unsigned sent_before_ = 0;  // to the driver before this one
};

TEST_F(Vsock, ShowsTheGuestItsAddress) {
  EXPECT_EQ(driver.read(kDeviceId), 19U);
  EXPECT_EQ(driver.read(kConfig), kCid);
  EXPECT_EQ(driver.read(kConfig + 4), 0U);
  EXPECT_EQ(driver.offered() & 0xff'ffff, 1U) << "STREAM, and not SEQPACKET";
}

TEST_F(Vsock, AProgramReachesTheGuest) {
  start();
  const Open open = open_to_guest();
  open.program.send("to the guest");
  EXPECT_EQ(received().data, "to the guest");
  send(VsockOp::kRw, open.ports, "from the guest");
  EXPECT_EQ(open.program.receive(14), "from the guest");
  settle();
  EXPECT_TRUE(here->line.level);
}

TEST_F(Vsock, TheGuestReachesAProgram) {
  start();
  here->programs->listen(80);
  send(VsockOp::kRequest, {.host = 80, .guest = 1000});
  EXPECT_EQ(received().header.op, VsockOp::kResponse);
  const Program program = here->programs->accept(80);
  send(VsockOp::kRw, {.host = 80, .guest = 1000}, "hello");
  EXPECT_EQ(program.receive(5), "hello");
  send(VsockOp::kRequest, {.host = 81, .guest = 1000});
  EXPECT_EQ(received().header.op, VsockOp::kRst) << "nobody listens";
}

TEST_F(Vsock, MuchDataGoesThroughSmallBuffers) {
  start(4);
  const Open open = open_to_guest();
  std::string all;
  for (unsigned i = 0; i < 20000; ++i) all += static_cast<char>('a' + i % 23);
  open.program.send(all);
  std::string got;
  while (got.size() < all.size()) {
    offer_receive(1, 700);
    const Got piece = received();
    ASSERT_EQ(piece.header.op, VsockOp::kRw);
    got += piece.data;
  }
  EXPECT_EQ(got, all);
}

TEST_F(Vsock, DataWaitsForTheGuestsBuffers) {
  start(1);
  const Open open = open_to_guest();
  open.program.send("data");
  settle();
  EXPECT_EQ(driver.take_used(kReceive), std::nullopt);
  offer_receive(1);
  EXPECT_EQ(received().data, "data");
}

TEST_F(Vsock, HeaderAndDataMayBeSplitAnyhow) {
  start();
  const Open open = open_to_guest();
  const VsockHeader header = [&] {
    VsockHeader made = packet(VsockOp::kRw, open.ports);
    made.len = 6;
    return made;
  }();
  ASSERT_TRUE(memory->write(kEventBuffer, encode_vsock(header)).ok());
  driver.put_text(kEventBuffer + kVsockHeaderBytes, "splitX");
  driver.describe(kTransmit, 100, {.address = kEventBuffer, .bytes = 20, .flags = kDescriptorNext, .next = 101});
  driver.describe(kTransmit, 101, {.address = kEventBuffer + 20, .bytes = 26, .flags = kDescriptorNext, .next = 102});
  driver.describe(kTransmit, 102, {.address = kEventBuffer + 46, .bytes = 4});
  driver.offer(kTransmit, 100);
  driver.notify(kTransmit);
  EXPECT_EQ(open.program.receive(6), "splitX");
}

TEST_F(Vsock, ALengthThatCannotBeTrueEndsItsConnection) {
  start();
  for (const std::uint32_t len : {5U, kVsockBufferBytes + 1, 0xffff'ffffU}) {
    const Open open = open_to_guest();
    VsockHeader header = packet(VsockOp::kRw, open.ports);
    header.len = len;
    send(header, "data");
    EXPECT_EQ(received().header.op, VsockOp::kRst) << len;
    EXPECT_TRUE(open.program.at_end()) << len;
  }
  const Open open = open_to_guest();
  VsockHeader header = packet(VsockOp::kCreditUpdate, open.ports);
  header.len = 0xffff'ffff;  // of a packet that has no data
  send(header);
  VsockHeader less = packet(VsockOp::kRw, open.ports);
  less.len = 2;
  send(less, "data");
  EXPECT_EQ(open.program.receive(2), "da");
  EXPECT_FALSE(driver.needs_reset());
}

TEST_F(Vsock, APacketWithoutAHeaderNeedsAReset) {
  start();
  driver.send(kTransmit, 0, {.address = kPackets, .bytes = kVsockHeaderBytes - 1});
  expect_needs_reset();
  EXPECT_EQ(here->device->signals().faults(GuestFault::kRequest), 1U);
}

TEST_F(Vsock, ABufferWithoutRoomForDataNeedsAReset) {
  start(0);
  offer_receive(1, kVsockHeaderBytes);
  const Program program = here->programs->call("CONNECT 5\n");
  expect_needs_reset();
}

TEST_F(Vsock, ABufferThatTheDeviceMayNotWriteNeedsAReset) {
  start(0);
  driver.send(kReceive, 0, {.address = kDriverBuffers, .bytes = kBufferBytes});
  const Program program = here->programs->call("CONNECT 5\n");
  expect_needs_reset();
}

// As the device's thread sees it: answers are owed that nobody fetches, so nothing more is taken.
TEST_F(Vsock, AGuestThatTakesNoAnswersIsNotServedFurther) {
  start(0);
  for (unsigned i = 0; i < kVsockResetsMax + 10; ++i) {
    if (i == kVsockResetsMax) expect_taken();
    send(VsockOp::kRw, {.host = 9, .guest = i});
  }
  expect_taken(10);
  for (unsigned i = 0; i < kVsockResetsMax + 10; ++i) {
    offer_receive(1);
    EXPECT_EQ(received().header.dst_port, i);
  }
}

TEST_F(Vsock, NobodyCanConnectBeforeTheVmMayRun) {
  Specimen waiting(*memory, gate);
  EXPECT_FALSE(waiting.programs->listening());
  waiting.device->resume();
  EXPECT_TRUE(waiting.programs->listening());
  ASSERT_TRUE(waiting.device->quiesce(Deadline::after(kWait)).ok());
  EXPECT_TRUE(waiting.programs->listening()) << "a pause turns nobody away";
}

TEST_F(Vsock, WithoutADriverProgramsAreTurnedAway) {
  EXPECT_TRUE(here->programs->call("CONNECT 5\n").at_end());
  start();
  (void)open_to_guest();
}

TEST_F(Vsock, APauseKeepsConnectionsAndWhatIsOnItsWay) {
  start(1);
  const Open open = open_to_guest();
  open.program.send("waits for a buffer");
  settle();
  quiesce();
  send(VsockOp::kRw, open.ports, "sent while it was quiet");
  open.program.send(", and for the end of the pause");
  EXPECT_FALSE(open.program.readable());
  offer_receive(2);
  EXPECT_EQ(driver.take_used(kReceive), std::nullopt);
  here->device->resume();
  EXPECT_EQ(open.program.receive(23), "sent while it was quiet");
  std::string got = received().data;
  if (got.size() < 48) got += received().data;
  EXPECT_EQ(got, "waits for a buffer, and for the end of the pause");
}

TEST_F(Vsock, AProgramThatConnectsDuringAPauseWaits) {
  start();
  quiesce();
  const Program program = here->programs->call("CONNECT 5\n");
  EXPECT_FALSE(program.readable());
  here->device->resume();
  EXPECT_EQ(received().header.op, VsockOp::kRequest);
}

TEST_F(Vsock, AfterAMoveTheDriverIsToldBeforeAnythingElse) {
  start();
  const Open open = open_to_guest();
  const auto left = move();
  EXPECT_EQ(here->vsock->counters().connections, 0U);
  const Program early = here->programs->call("CONNECT 5\n");
  settle();
  EXPECT_EQ(driver.take_used(kReceive), std::nullopt) << "it might take it for one that it had";
  offer_event();
  const auto told = answer(kEvent);
  ASSERT_TRUE(told.has_value());
  EXPECT_EQ(told->bytes, 4U);
  EXPECT_EQ(driver.get<std::uint32_t>(kEventBuffer), 0U) << "TRANSPORT_RESET";
  const Got request = received();
  EXPECT_EQ(request.header.op, VsockOp::kRequest);
  EXPECT_EQ(driver.take_used(kEvent), std::nullopt) << "once";

  EXPECT_FALSE(open.program.readable()) << "the hand-over may still fail";
  left->vsock->disconnect();
  EXPECT_TRUE(open.program.at_end());
  EXPECT_FALSE(left->programs->listening());
}

TEST_F(Vsock, AMoveIsToldOfAfterTheNextOneToo) {
  start();
  (void)move();
  (void)move();
  offer_event();
  EXPECT_TRUE(answer(kEvent).has_value());
  settle();
  offer_event();
  settle();
  EXPECT_EQ(driver.take_used(kEvent), std::nullopt) << "connections made since are good";
}

TEST_F(Vsock, AHandOverThatFailedKeepsConnections) {
  start();
  const Open open = open_to_guest();
  quiesce();
  Specimen there(*memory, gate);
  ASSERT_TRUE(there.device->load(here->device->save()).ok());
  here->device->resume();
  offer_event();
  open.program.send("still here");
  EXPECT_EQ(received().data, "still here");
  EXPECT_EQ(driver.take_used(kEvent), std::nullopt);
}

TEST_F(Vsock, ADriverWithoutAnEventQueueLearnsFromResets) {
  ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
  for (const unsigned queue : {kReceive, kTransmit}) {
    ASSERT_TRUE(driver.set_up(queue, testing::VirtioDriver::rings_of(queue, kVsockQueueSize)));
  }
  driver.add_status(kStatusDriverOk);
  offer_receive(8);
  const Open open = open_to_guest();
  (void)move();
  send(VsockOp::kRw, open.ports, "to whom?");
  EXPECT_EQ(received().header.op, VsockOp::kRst);
}

TEST_F(Vsock, ADriverThatStartsAnewIsNotToldOfAMove) {
  start();
  (void)move();
  driver.write(kStatus, 0);
  start();
  offer_event();
  (void)open_to_guest();
  EXPECT_EQ(driver.take_used(kEvent), std::nullopt);
}

TEST_F(Vsock, AnEventBufferThatIsTooSmallNeedsAReset) {
  start();
  (void)move();
  offer_event(3);
  expect_needs_reset();
}

TEST_F(Vsock, AResetOfTheDriverEndsAllConnections) {
  start();
  const Open open = open_to_guest();
  driver.write(kStatus, 0);
  EXPECT_TRUE(open.program.at_end());
  start();
  (void)open_to_guest();
}

TEST_F(Vsock, AHeldGateKeepsPacketsAndTheEndOfTheirConnection) {
  start();
  const Open open = open_to_guest();
  gate.hold(1);
  send(VsockOp::kRw, open.ports, "held");
  expect_taken();
  driver.write(kStatus, 0);
  settle();
  EXPECT_FALSE(open.program.readable()) << "neither the data nor the end";
  gate.open();
  EXPECT_EQ(open.program.receive(100), "held") << "and then the end";
  start();
  (void)open_to_guest();
}

TEST_F(Vsock, AHeldGateKeepsARequestFromTheHost) {
  start();
  here->programs->listen(80);
  gate.hold(1);
  send(VsockOp::kRequest, {.host = 80, .guest = 1000});
  expect_taken();
  EXPECT_EQ(here->vsock->counters().opened, 0U) << "the gate has it";
  EXPECT_EQ(gate.release(1), 1U);
  EXPECT_EQ(received().header.op, VsockOp::kResponse);
}

TEST_F(Vsock, AFullGateLeavesTheRequestAndTheReset) {
  start();
  const Open open = open_to_guest();
  gate.hold(1);
  for (unsigned i = 0; i < 4; ++i) send(VsockOp::kRw, open.ports, "x");
  send(VsockOp::kRw, open.ports, "y");
  expect_taken(1);  // there was no room
  gate.open();
  settle();  // as every epoch does
  EXPECT_EQ(open.program.receive(5), "xxxxy");
  gate.hold(2);
  for (unsigned i = 0; i < 5; ++i) send(VsockOp::kRw, open.ports, "z");
  expect_taken(1);
  driver.write(kStatus, 0);
  settle();
  start();
  EXPECT_TRUE(here->programs->call("CONNECT 5\n").at_end()) << "its old connections are not over yet";
  gate.open();
  settle();
  EXPECT_EQ(open.program.receive(100), "zzzz") << "what the gate had, and then the end";
  settle();
  (void)open_to_guest();
}

TEST_F(Vsock, ADisconnectedDeviceStaysHarmless) {
  start();
  const Open open = open_to_guest();
  here->vsock->disconnect();
  EXPECT_TRUE(open.program.at_end());
  EXPECT_FALSE(here->programs->listening());
  send(VsockOp::kRw, open.ports, "nobody");
  here->vsock->disconnect();
  driver.write(kStatus, 0);
  EXPECT_EQ(driver.status(), 0U);
  EXPECT_EQ(here->vsock->counters().connections, 0U);
}

TEST_F(Vsock, StatesThatNoDeviceSavesAreRefused) {
  const DeviceState good = here->vsock->save();
  EXPECT_TRUE(good.bytes.empty());
  EXPECT_FALSE(here->vsock->load({.version = 2, .bytes = {}}).ok());
  EXPECT_FALSE(here->vsock->load({.version = 1, .bytes = {std::byte{0}}}).ok());
  EXPECT_TRUE(here->vsock->load(good).ok());
}

}  // namespace
}  // namespace fvmm::devices
