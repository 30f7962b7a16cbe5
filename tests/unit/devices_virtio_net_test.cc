// virtio-net over a wire in memory: frames both ways, back-pressure, the control queue, moves, clones, announcements.
#include "devices/virtio_net.h"

#include <gtest/gtest.h>

#include "devices/virtio_mmio.h"
#include "devices/virtio_net_abi.h"
#include "support/fake_wire.h"
#include "support/virtio_driver.h"

namespace fvmm::devices {
namespace {

using namespace virtio;
using testing::Descriptor;
using testing::Frame;
using testing::frame_to;
using testing::kDriverBuffers;

constexpr std::chrono::seconds kWait{30};
constexpr Mac kOwn{2, 0x11, 0x22, 0x33, 0x44, 0x55};
constexpr Mac kOther{2, 0x66, 0x66, 0x66, 0x66, 0x66};
constexpr Mac kBroadcast{0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
constexpr std::uint64_t kControlBuffer = 8 * kMiB;

/// The device behind its transport, on a wire of its own.
struct Specimen {
  explicit Specimen(memory::GuestMemory& memory, OutputGate& gate, Mac mac = kOwn, bool offloads = true) {
    auto made = std::make_unique<VirtioNet>(
        VirtioNetSetup{.backend = std::make_unique<testing::WireBackend>(wire, offloads), .gate = gate, .mac = mac});
    net = made.get();
    device = std::make_unique<VirtioMmio>("virtio0", VirtioMmio::Surroundings{.memory = memory, .line = line},
                                          std::move(made));
  }
  std::shared_ptr<testing::Wire> wire = std::make_shared<testing::Wire>();
  testing::FakeIrqLine line;
  VirtioNet* net;
  std::unique_ptr<VirtioMmio> device;
};

class VirtioNetTest : public ::testing::Test {
 protected:
  VirtioNetTest() { here->device->resume(); }

  void start() { driver.start(here->net->features()); }
  /// Buffers for received frames, from `first` on.
  void offer_receive(unsigned count, std::uint32_t bytes, unsigned first = 0) {
    for (unsigned i = first; i < first + count; ++i) {
      driver.describe(net::kReceiveQueue, i, {.address = buffer(i), .bytes = bytes, .flags = kDescriptorWrite});
      driver.offer(net::kReceiveQueue, static_cast<std::uint16_t>(i));
    }
    driver.notify(net::kReceiveQueue);
  }
  static std::uint64_t buffer(unsigned index) { return kDriverBuffers + 4096ULL * index; }
  void send(const Frame& frame, std::uint16_t index = 0) {
    ASSERT_TRUE(memory->write(6 * kMiB, frame).ok());
    driver.send(net::kTransmitQueue, index, {.address = 6 * kMiB, .bytes = static_cast<std::uint32_t>(frame.size())});
  }
  std::optional<testing::VirtioDriver::Used> answer(unsigned queue) {
    const Deadline deadline = Deadline::after(kWait);
    for (;;) {
      if (auto used = driver.take_used(queue)) return used;
      if (deadline.passed()) return std::nullopt;
      std::this_thread::yield();
    }
  }
  /// What the driver finds in the buffers of its next frame, header included.
  Frame received() {
    const auto first = answer(net::kReceiveQueue);
    if (!first) return {};
    Frame frame = driver.bytes(buffer(first->head), first->bytes);
    const unsigned buffers = std::to_integer<unsigned>(frame.at(10)) + 256 * std::to_integer<unsigned>(frame.at(11));
    for (unsigned i = 1; i < buffers; ++i) {
      const auto used = driver.take_used(net::kReceiveQueue);  // all of a frame are there at once
      EXPECT_TRUE(used.has_value());
      if (!used) return frame;
      const Frame more = driver.bytes(buffer(used->head), used->bytes);
      frame.insert(frame.end(), more.begin(), more.end());
    }
    return frame;
  }
  static Frame data_of(const Frame& frame) {
    return frame.size() < kNetHeaderBytes ? Frame{} : Frame(frame.begin() + kNetHeaderBytes, frame.end());
  }
  /// A command of the control queue; its answer, 0 or 1.
  std::uint8_t command(const std::vector<std::uint8_t>& bytes) {
    EXPECT_TRUE(memory->write(kControlBuffer, std::as_bytes(std::span(bytes))).ok());
    driver.put(kControlBuffer + 2048, std::uint8_t{0xa5});
    driver.describe(net::kControl, 0,
                    {.address = kControlBuffer,
                     .bytes = static_cast<std::uint32_t>(bytes.size()),
                     .flags = kDescriptorNext,
                     .next = 1});
    driver.describe(net::kControl, 1, {.address = kControlBuffer + 2048, .bytes = 1, .flags = kDescriptorWrite});
    driver.offer(net::kControl, 0);
    driver.notify(net::kControl);
    EXPECT_TRUE(answer(net::kControl).has_value());
    return driver.get<std::uint8_t>(kControlBuffer + 2048);
  }
  /// Everything that was begun is done.
  void settle() {
    ASSERT_TRUE(here->device->quiesce(Deadline::after(kWait)).ok());
    here->device->resume();
  }
  void expect_needs_reset() {
    const Deadline deadline = Deadline::after(kWait);
    while (!driver.needs_reset() && !deadline.passed()) std::this_thread::yield();
    EXPECT_TRUE(driver.needs_reset());
  }
  /// The guest goes on with another device, as another host or a clone has it.
  void move(Mac configured = kOwn) {
    ASSERT_TRUE(here->device->quiesce(Deadline::after(kWait)).ok());
    auto there = std::make_unique<Specimen>(*memory, gate, configured);
    const Status loaded = there->device->load(here->device->save());
    ASSERT_TRUE(loaded.ok()) << loaded.error().message();
    here = std::move(there);
    driver.move_to(*here->device);
    here->device->resume();
  }
  [[nodiscard]] Mac shown_mac() const {
    Mac mac{};
    here->device->read(kConfig, std::as_writable_bytes(std::span(mac)));
    return mac;
  }
  [[nodiscard]] unsigned shown_status() const {
    std::array<std::byte, 2> status{};
    here->device->read(kConfig + 6, status);
    return std::to_integer<unsigned>(status[0]) | std::to_integer<unsigned>(status[1]) << 8;
  }
  /// Receives nothing but what its address says, as a driver that is up.
  void stop_promiscuous() {
    ASSERT_EQ(command({0, 0, 0}), 0);
    ASSERT_EQ(command({0, 1, 0}), 0);
  }
  std::uint64_t filtered() const { return here->net->counters().filtered; }

  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  OutputGate gate{1024, 4};
  std::unique_ptr<Specimen> here = std::make_unique<Specimen>(*memory, gate);
  testing::VirtioDriver driver{*here->device, *memory};
};

TEST_F(VirtioNetTest, OffersOffloadsOnlyOverABackendThatHasThem) {
  const Specimen plain(*memory, gate, kOwn, false);
  constexpr std::uint64_t kOffloads =
      net::kCsum | net::kGuestCsum | net::kGuestTso4 | net::kGuestTso6 | net::kHostTso4 | net::kHostTso6;
  EXPECT_EQ(here->net->features() & kOffloads, kOffloads);
  EXPECT_EQ(plain.net->features(), here->net->features() & ~kOffloads);
}

TEST_F(VirtioNetTest, ShowsItsAddressAndALinkThatIsUp) {
  EXPECT_EQ(shown_mac(), kOwn);
  EXPECT_EQ(shown_status(), net::kLinkUp);
}

TEST_F(VirtioNetTest, TheBackendLeavesToTheGuestWhatItsDriverTakes) {
  driver.start(net::kGuestCsum | net::kGuestTso6);
  EXPECT_TRUE(here->wire->offloads().checksum);
  EXPECT_FALSE(here->wire->offloads().tso4);
  EXPECT_TRUE(here->wire->offloads().tso6);
  driver.start(net::kGuestTso4);  // without checksums there are no segments
  EXPECT_FALSE(here->wire->offloads().tso4);
}

TEST_F(VirtioNetTest, SendsAFrameWithItsHeader) {
  start();
  Frame frame = frame_to(kOther, 200);
  frame[net::kFlags] = std::byte{1};
  send(frame);
  ASSERT_TRUE(answer(net::kTransmitQueue).has_value());
  EXPECT_EQ(here->wire->sent(1), std::vector<Frame>{frame});
  EXPECT_EQ(here->net->counters().sent_frames, 1U);
  EXPECT_EQ(here->net->counters().sent_bytes, 200U);
}

TEST_F(VirtioNetTest, SendsTheLargestFrameAndDropsALargerOne) {
  start();
  for (const std::size_t bytes : {kNetDataBytesMax, kNetDataBytesMax + 1}) {
    send(frame_to(kOther, bytes));
    ASSERT_TRUE(answer(net::kTransmitQueue).has_value());
  }
  EXPECT_EQ(here->wire->sent(1).size(), 1U);
  EXPECT_EQ(here->net->counters().send_dropped, 1U);
  EXPECT_FALSE(driver.needs_reset());
}

TEST_F(VirtioNetTest, WithoutOffloadsAnUnfinishedFrameIsDropped) {
  here = std::make_unique<Specimen>(*memory, gate, kOwn, false);
  driver.move_to(*here->device);
  here->device->resume();
  start();
  Frame frame = frame_to(kOther, 100);
  frame[net::kGsoType] = std::byte{net::kGsoTcp4};
  send(frame);
  ASSERT_TRUE(answer(net::kTransmitQueue).has_value());
  EXPECT_EQ(here->net->counters().send_dropped, 1U);
}

TEST_F(VirtioNetTest, ARequestWithoutAHeaderNeedsAReset) {
  start();
  driver.send(net::kTransmitQueue, 0, {.address = kDriverBuffers, .bytes = kNetHeaderBytes - 1});
  expect_needs_reset();
  EXPECT_EQ(here->device->signals().faults(GuestFault::kRequest), 1U);
}

TEST_F(VirtioNetTest, AHeldGateKeepsFramesAndAFullOneLeavesTheRequest) {
  start();
  gate.hold(1);
  send(frame_to(kOther, 600, 1));
  ASSERT_TRUE(answer(net::kTransmitQueue).has_value()) << "the gate has it";
  send(frame_to(kOther, 600, 2), 1);
  settle();
  EXPECT_EQ(driver.take_used(net::kTransmitQueue), std::nullopt) << "there was no room";
  EXPECT_TRUE(here->wire->sent(0).empty());
  gate.open();
  settle();  // as every epoch does
  ASSERT_TRUE(answer(net::kTransmitQueue).has_value());
  EXPECT_EQ(here->wire->sent(2), (std::vector<Frame>{frame_to(kOther, 600, 1), frame_to(kOther, 600, 2)}));
}

TEST_F(VirtioNetTest, ReceivesIntoOneBuffer) {
  start();
  offer_receive(1, 2048);
  here->wire->push(frame_to(kOwn, 300));
  const Frame frame = received();
  EXPECT_EQ(data_of(frame), data_of(frame_to(kOwn, 300)));
  EXPECT_EQ(frame[net::kNumBuffers], std::byte{1});
  settle();
  EXPECT_TRUE(here->line.level);
}

TEST_F(VirtioNetTest, ALargeFrameIsMergedFromManyBuffersAtOnce) {
  start();
  offer_receive(64, 1536);
  const Frame large = frame_to(kOwn, kNetDataBytesMax);
  here->wire->push(large);
  EXPECT_EQ(data_of(received()), data_of(large));
  EXPECT_EQ(driver.used_index(net::kReceiveQueue), (kNetFrameBytesMax + 1535) / 1536);
}

TEST_F(VirtioNetTest, WithoutMergingAFrameThatDoesNotFitIsDroppedAndTheBufferStays) {
  driver.start(net::kMac);
  offer_receive(1, 256);
  here->wire->push(frame_to(kOwn, 300, 1));
  here->wire->push(frame_to(kOwn, 200, 2));
  EXPECT_EQ(data_of(received()), data_of(frame_to(kOwn, 200, 2)));
  EXPECT_EQ(here->net->counters().receive_dropped, 1U);
}

TEST_F(VirtioNetTest, AFrameLargerThanAllBuffersThatThereCanBeIsDropped) {
  start();
  offer_receive(kNetQueueSize, 64);
  here->wire->push(frame_to(kOwn, 64UL * kNetQueueSize, 1));
  here->wire->push(frame_to(kOwn, 100, 2));
  EXPECT_EQ(data_of(received()), data_of(frame_to(kOwn, 100, 2)));
}

TEST_F(VirtioNetTest, NothingIsReadWhileTheGuestHasNoBuffers) {
  start();
  for (unsigned i = 0; i < 3; ++i) here->wire->push(frame_to(kOwn, 100, i));
  settle();
  EXPECT_EQ(here->wire->waiting(), 3U);
  offer_receive(1, 2048);
  EXPECT_EQ(data_of(received()), data_of(frame_to(kOwn, 100, 0)));
  settle();
  EXPECT_EQ(here->wire->waiting(), 2U);
  offer_receive(2, 2048, 1);
  for (unsigned i = 1; i < 3; ++i) EXPECT_EQ(data_of(received()), data_of(frame_to(kOwn, 100, i)));
}

TEST_F(VirtioNetTest, AFrameThatWaitsForMoreBuffersMovesWithTheGuest) {
  start();
  offer_receive(1, 256);
  here->wire->push(frame_to(kOwn, 600));
  const Deadline deadline = Deadline::after(kWait);
  while (here->wire->waiting() != 0 && !deadline.passed()) std::this_thread::yield();
  move();
  EXPECT_EQ(driver.used_index(net::kReceiveQueue), 0U);
  offer_receive(2, 256, 1);
  EXPECT_EQ(data_of(received()), data_of(frame_to(kOwn, 600)));
}

TEST_F(VirtioNetTest, WhileQuietTheBackendIsLeftAlone) {
  start();
  offer_receive(4, 2048);
  ASSERT_TRUE(here->device->quiesce(Deadline::after(kWait)).ok());
  here->wire->push(frame_to(kOwn, 100));
  send(frame_to(kOther, 100));
  here->net->announce();
  EXPECT_EQ(here->wire->waiting(), 1U);
  EXPECT_TRUE(here->wire->sent(0).empty());
  here->device->resume();
  EXPECT_FALSE(received().empty());
}

TEST_F(VirtioNetTest, ABufferThatOnlyTheDeviceMayReadNeedsAReset) {
  start();
  driver.send(net::kReceiveQueue, 0, {.address = kDriverBuffers, .bytes = 2048});
  here->wire->push(frame_to(kOwn, 100));
  expect_needs_reset();
}

TEST_F(VirtioNetTest, WhatTheDriverHasNotNegotiatedDoesNotReachIt) {
  driver.start(net::kMergeable);
  offer_receive(4, 2048);
  Frame segment = frame_to(kOwn, 100, 1);
  segment[net::kGsoType] = std::byte{net::kGsoTcp4};
  Frame unfinished = frame_to(kOwn, 100, 2);
  unfinished[net::kFlags] = std::byte{1};
  Frame checked = frame_to(kOwn, 100, 3);
  checked[net::kFlags] = std::byte{2};
  for (const Frame& frame : {segment, unfinished, checked}) here->wire->push(frame);
  const Frame frame = received();
  EXPECT_EQ(data_of(frame), data_of(checked));
  EXPECT_EQ(frame[net::kFlags], std::byte{0});
  EXPECT_EQ(here->net->counters().receive_dropped, 2U);
}

TEST_F(VirtioNetTest, FramesOfOthersAreFilteredOnceTheDriverSaysSo) {
  start();
  offer_receive(8, 2048);
  here->wire->push(frame_to(kOther, 100, 1));
  EXPECT_EQ(data_of(received()), data_of(frame_to(kOther, 100, 1))) << "promiscuous until told";
  stop_promiscuous();
  constexpr Mac kGroup{1, 0, 0x5e, 0, 0, 1};
  for (const Mac& mac : {kOther, kGroup, kBroadcast, kOwn}) here->wire->push(frame_to(mac, 100, 2));
  EXPECT_EQ(data_of(received()), data_of(frame_to(kBroadcast, 100, 2)));
  EXPECT_EQ(data_of(received()), data_of(frame_to(kOwn, 100, 2)));
  EXPECT_EQ(filtered(), 2U);

  ASSERT_EQ(command({1, 0, 1, 0, 0, 0, 2, 0x66, 0x66, 0x66, 0x66, 0x66, 1, 0, 0, 0, 1, 0, 0x5e, 0, 0, 1}), 0);
  move();  // the tables do, too
  for (const Mac& mac : {kOther, kGroup}) {
    here->wire->push(frame_to(mac, 100, 3));
    EXPECT_EQ(data_of(received()), data_of(frame_to(mac, 100, 3)));
  }
}

TEST_F(VirtioNetTest, AMoreThanFullTableMeansEverythingOfThatKind) {
  start();
  offer_receive(1, 2048);
  stop_promiscuous();
  std::vector<std::uint8_t> table{1, 0, kMacTableEntriesMax + 1, 0, 0, 0};
  table.resize(table.size() + kMacBytes * (kMacTableEntriesMax + 1), 2);
  table.insert(table.end(), {0, 0, 0, 0});
  ASSERT_EQ(command(table), 0);
  here->wire->push(frame_to(kOther, 100));
  EXPECT_EQ(data_of(received()), data_of(frame_to(kOther, 100)));
}

TEST_F(VirtioNetTest, CommandsThatMakeNoSenseAreAnsweredWithAnError) {
  start();
  const std::vector<std::vector<std::uint8_t>> bad{{0},                                   // no command
                                                   {0, 0},                                // no mode
                                                   {0, 0, 2},                             // neither on nor off
                                                   {0, 9, 1},                             // no such mode
                                                   {1, 0, 2, 0, 0, 0, 2, 0, 0, 0, 0, 1},  // a table that ends early
                                                   {1, 0, 0xff, 0xff, 0xff, 0xff},
                                                   {1, 1, 1, 0, 0, 0, 0, 1},  // a group's address
                                                   {1, 1, 2, 0, 0},
                                                   {2, 0, 1, 0},  // VLANs are not offered
                                                   {3, 1},
                                                   {4, 0, 2, 0},  // nor are several queues
                                                   {0xff, 0xff}};
  for (std::size_t i = 0; i < bad.size(); ++i) EXPECT_EQ(command(bad[i]), 1) << i;
  EXPECT_FALSE(driver.needs_reset());
}

TEST_F(VirtioNetTest, ACommandWithoutRoomForItsAnswerNeedsAReset) {
  start();
  driver.send(net::kControl, 0, {.address = kControlBuffer, .bytes = 3});
  expect_needs_reset();
}

TEST_F(VirtioNetTest, AnAddressThatTheDriverSetsIsShownKeptAndForgottenByAReset) {
  start();
  ASSERT_EQ(command({1, 1, 2, 0x66, 0x66, 0x66, 0x66, 0x66}), 0);
  EXPECT_EQ(shown_mac(), kOther);
  move();
  EXPECT_EQ(shown_mac(), kOther);
  driver.write(kStatus, 0);
  EXPECT_EQ(shown_mac(), kOwn);
}

TEST_F(VirtioNetTest, ACloneShowsItsOwnAddressAndStillHearsTheOldOne) {
  start();
  stop_promiscuous();
  move(kOther);
  EXPECT_EQ(shown_mac(), kOther);
  offer_receive(4, 2048);
  for (const Mac& mac : {kOwn, kOther}) {
    here->wire->push(frame_to(mac, 100));
    EXPECT_EQ(data_of(received()), data_of(frame_to(mac, 100)));
  }
  here->net->announce();
  settle();
  EXPECT_EQ(here->net->counters().announced, 0U) << "the address it uses is the other VM's";
  move(kOther);  // it is a VM like any other, and may migrate
  EXPECT_EQ(shown_mac(), kOther);
}

TEST_F(VirtioNetTest, AnAnnouncementTellsSwitchesAndTheDriver) {
  start();
  here->net->announce();
  EXPECT_EQ(shown_status(), net::kLinkUp | net::kAnnounce);
  EXPECT_EQ(driver.read(kInterruptStatus) & kInterruptConfig, kInterruptConfig);
  const auto sent = here->wire->sent(kNetAnnounceRounds);
  ASSERT_EQ(sent.size(), kNetAnnounceRounds);
  for (const Frame& frame : sent) {
    EXPECT_EQ(frame.size(), kNetHeaderBytes + 60);
    EXPECT_EQ(frame[kNetHeaderBytes + 12], std::byte{0x80});
    EXPECT_EQ(frame[kNetHeaderBytes + 13], std::byte{0x35});
    for (std::size_t i = 0; i < kMacBytes; ++i) {
      EXPECT_EQ(frame[kNetHeaderBytes + i], std::byte{0xff});
      EXPECT_EQ(frame[kNetHeaderBytes + 6 + i], static_cast<std::byte>(kOwn.at(i)));
    }
  }
  EXPECT_EQ(command({3, 0}), 0);
  EXPECT_EQ(shown_status(), net::kLinkUp);
}

TEST_F(VirtioNetTest, ADriverThatCannotAnnounceIsNotAsked) {
  driver.start(net::kStatus);
  here->net->announce();
  EXPECT_EQ(shown_status(), net::kLinkUp);
  EXPECT_GE(here->wire->sent(1).size(), 1U) << "switches are told all the same";
}

TEST_F(VirtioNetTest, ADisconnectedDeviceGivesItsBackendBackAndStaysHarmless) {
  start();
  here->net->disconnect();
  EXPECT_TRUE(here->wire->closed());
  send(frame_to(kOther, 100));
  here->net->disconnect();
  driver.write(kStatus, 0);
  EXPECT_EQ(driver.status(), 0U);
}

TEST_F(VirtioNetTest, StatesThatNoDeviceSavesAreRefused) {
  const DeviceState good = here->net->save();
  const auto with = [&](std::size_t at, std::uint8_t value) {
    DeviceState bad = good;
    bad.bytes.at(at) = static_cast<std::byte>(value);
    return bad;
  };
  // Configured address 0 to 5, status 6 and 7, own and known address to 19, two flags, two tables of two bytes, length.
  for (const DeviceState& bad : {with(6, 4), with(20, 2), with(21, 2), with(22, 2), with(23, 1), with(26, 1)}) {
    EXPECT_FALSE(here->net->load(bad).ok());
  }
  DeviceState many = with(23, kMacTableEntriesMax + 1);
  many.bytes.insert(many.bytes.begin() + 24, kMacBytes * (kMacTableEntriesMax + 1), std::byte{2});
  EXPECT_FALSE(here->net->load(many).ok());
  DeviceState short_frame = with(26, 4);
  short_frame.bytes.resize(short_frame.bytes.size() + 4);
  EXPECT_FALSE(here->net->load(short_frame).ok());
  EXPECT_TRUE(here->net->load(good).ok());
}

}  // namespace
}  // namespace fvmm::devices
