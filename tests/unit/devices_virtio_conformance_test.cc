// What every virtio device promises behind its transport, tried on every device: support/virtio_kinds.h has them.
// Descriptors that a driver must not write are in devices_virtio_descriptors_test.cc.
#include <gtest/gtest.h>

#include "support/virtio_device_test.h"

namespace fvmm::devices {
namespace {

using namespace virtio;
using testing::Descriptor;
using testing::EveryVirtioDevice;
using testing::kDriverBuffers;
using testing::VirtioDriver;

TEST_P(EveryVirtioDevice, SaysWhatItIs) {
  EXPECT_EQ(driver.read(kMagicValue), kMagic);
  EXPECT_EQ(driver.read(kVersion), 2U);
  EXPECT_EQ(driver.read(kDeviceId), device().device().type());
  EXPECT_NE(driver.read(kDeviceId), 0U) << "0 is a placeholder that drivers pass by";
  EXPECT_EQ(driver.read(kVendorId), kVendor);
  EXPECT_EQ(driver.offered() & kTransportFeatures, kTransportFeatures);
  EXPECT_EQ(driver.offered() & kReservedFeatures & ~kTransportFeatures, 0U);
  EXPECT_EQ(driver.read(kQueueSizeMaxRegister), device().device().queue_sizes()[0]);
}

TEST_P(EveryVirtioDevice, HasNoSharedMemoryAndNoQueueReset) {
  driver.write(kShmSel, 0);
  for (const std::uint64_t offset : {kShmLenLow, kShmLenHigh, kShmBaseLow, kShmBaseHigh}) {
    EXPECT_EQ(driver.read(offset), 0xffff'ffffU);
  }
  EXPECT_EQ(driver.read(0x0c0), 0U);
}

TEST_P(EveryVirtioDevice, AnswersARequestWithAnyFeatures) {
  for (const std::uint64_t features : {std::uint64_t{0}, kFeatureEventIdx, kFeatureIndirect | kFeatureEventIdx}) {
    driver.start(features);
    expect_answer(0);
    expect_answer(1);
    settle();
    EXPECT_EQ(driver.read(kInterruptStatus) & kInterruptUsed, kInterruptUsed);
  }
}

TEST_P(EveryVirtioDevice, AResetLeavesNothing) {
  const DeviceState fresh = saved();
  driver.start(kFeatureEventIdx);
  expect_answer(0);
  driver.write(kQueueSel, 0);
  driver.write(kStatus, 0);
  EXPECT_EQ(driver.status(), 0U);
  EXPECT_EQ(driver.read(kInterruptStatus), 0U);
  EXPECT_FALSE(specimen->line.level);
  EXPECT_EQ(driver.read(kQueueReady), 0U);
  EXPECT_EQ(saved().bytes, fresh.bytes);
  driver.start(0);
  expect_answer(0);
}

TEST_P(EveryVirtioDevice, FeaturesThatAreNotOfferedAreRefusedEachAlone) {
  const std::uint64_t offered = driver.offered();
  EXPECT_TRUE(driver.negotiate(offered));
  EXPECT_FALSE(driver.negotiate(0)) << "VERSION_1 is needed";
  EXPECT_EQ(driver.status(), kStatusAcknowledge | kStatusDriver);
  for (unsigned bit = 0; bit < 64; ++bit) {
    const std::uint64_t wanted = kFeatureVersion1 | (1ULL << bit);
    EXPECT_EQ(driver.negotiate(wanted), (offered & wanted) == wanted) << "bit " << bit;
  }
}

TEST_P(EveryVirtioDevice, FeaturesAreFixedOnceTheyAreOk) {
  ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
  const auto faults = device().signals().faults(GuestFault::kRegister);
  const DeviceState before = saved();
  driver.write(kDriverFeatures, 0);
  EXPECT_EQ(saved().bytes, before.bytes);
  EXPECT_EQ(device().signals().faults(GuestFault::kRegister), faults + 1);
}

TEST_P(EveryVirtioDevice, FeatureWordsBeyondTheSecondDoNotExist) {
  driver.write(kDeviceFeaturesSel, 2);
  EXPECT_EQ(driver.read(kDeviceFeatures), 0U);
  driver.write(kDriverFeaturesSel, 2);
  const DeviceState before = saved();
  driver.write(kDriverFeatures, 1);
  EXPECT_EQ(saved().bytes, before.bytes);
}

// Every status that can be written in one go, from the state after a reset.
TEST_P(EveryVirtioDevice, EachStatusNeedsTheOneBefore) {
  for (std::uint32_t value = 1; value < 256; ++value) {
    driver.write(kStatus, 0);
    driver.write(kDriverFeaturesSel, 1);
    driver.write(kDriverFeatures, static_cast<std::uint32_t>(kFeatureVersion1 >> 32));
    driver.write(kStatus, value);
    std::uint32_t expected = 0;
    if ((value & (16U | 32U)) == 0) {  // reserved
      if ((value & 1) != 0) expected |= 1;
      if ((expected & 1) != 0 && (value & 2) != 0) expected |= 2;
      if ((expected & 2) != 0 && (value & 8) != 0) expected |= 8;
      if ((expected & 8) != 0 && (value & 4) != 0) expected |= 4;
      expected |= value & kStatusFailed;
    }
    EXPECT_EQ(driver.status(), expected) << "wrote " << value;
  }
}

TEST_P(EveryVirtioDevice, AStatusBitGoesOnlyByAReset) {
  driver.start(0);
  const std::uint32_t all = driver.status();
  for (const std::uint32_t bit : {kStatusAcknowledge, kStatusDriver, kStatusFeaturesOk, kStatusDriverOk}) {
    driver.write(kStatus, all & ~bit);
    EXPECT_EQ(driver.status(), all) << bit;
  }
  expect_answer(0);
}

TEST_P(EveryVirtioDevice, QueuesAreSetUpBetweenFeaturesAndDriverOk) {
  const auto rings = VirtioDriver::rings_of(0, 4);
  EXPECT_FALSE(driver.set_up(0, rings)) << "before FEATURES_OK";
  ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
  driver.add_status(kStatusDriverOk);
  EXPECT_FALSE(driver.set_up(0, rings)) << "after DRIVER_OK";
  ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
  EXPECT_TRUE(driver.set_up(0, rings));
  EXPECT_FALSE(driver.needs_reset());
}

TEST_P(EveryVirtioDevice, AQueueThatDoesNotExistIsNeverReady) {
  ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
  const auto count = static_cast<unsigned>(device().device().queue_sizes().size());
  EXPECT_FALSE(driver.set_up(count, VirtioDriver::rings_of(count, 4)));
  EXPECT_EQ(driver.read(kQueueSizeMaxRegister), 0U);
  EXPECT_FALSE(driver.needs_reset());
}

TEST_P(EveryVirtioDevice, RingsOfAnImpossibleSizeOrPlaceNeedAReset) {
  const std::uint16_t max = device().device().queue_sizes()[0];
  const Virtqueue::Rings good = VirtioDriver::rings_of(0, max);
  const auto with = [&](const auto& change) {
    Virtqueue::Rings rings = good;
    change(rings);
    return rings;
  };
  const std::vector<Virtqueue::Rings> bad{
      with([](auto& r) { r.size = 0; }),
      with([](auto& r) { r.size = 3; }),
      with([&](auto& r) { r.size = static_cast<std::uint16_t>(2 * max); }),
      with([](auto& r) { r.descriptors += 8; }),
      with([](auto& r) { r.driver += 1; }),
      with([](auto& r) { r.device += 2; }),
      with([](auto& r) { r.descriptors = testing::kDriverMemory - 16; }),
      with([](auto& r) { r.driver = testing::kDriverMemory - 4; }),
      with([](auto& r) { r.device = 3 * kGiB; }),
      with([](auto& r) { r.descriptors = ~std::uint64_t{15}; }),
  };
  for (std::size_t i = 0; i < bad.size(); ++i) {
    ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
    EXPECT_FALSE(driver.set_up(0, bad[i])) << i;
    EXPECT_TRUE(driver.needs_reset()) << i;
    EXPECT_EQ(device().signals().faults(GuestFault::kQueueSetup), i + 1);
    EXPECT_TRUE(specimen->line.level);
  }
  driver.start(0);
  expect_answer(0);
}

TEST_P(EveryVirtioDevice, AQueueMayEndWhereMemoryEnds) {
  ASSERT_TRUE(driver.negotiate(kFeatureVersion1));
  Virtqueue::Rings rings = VirtioDriver::rings_of(0, 4);
  rings.device = testing::kDriverMemory - (4 + 8 * 4 + 2) - 2;  // as far back as alignment allows
  EXPECT_TRUE(driver.set_up(0, rings));
}

TEST_P(EveryVirtioDevice, ANotificationOfNoQueueIsOnlyCounted) {
  driver.notify(GetParam().queue);
  driver.start(0);
  driver.notify(99);
  EXPECT_EQ(device().signals().faults(GuestFault::kNotify), 2U);
  EXPECT_FALSE(driver.needs_reset());
  expect_answer(0);
}

TEST_P(EveryVirtioDevice, AQueueCanBeTakenAway) {
  driver.start(0);
  expect_answer(0);
  driver.write(kQueueSel, GetParam().queue);
  driver.write(kQueueReady, 0);
  EXPECT_EQ(driver.read(kQueueReady), 0U);
  driver.send(GetParam().queue, 2, request_at(2));
  settle();
  EXPECT_EQ(driver.take_used(GetParam().queue), std::nullopt);
  driver.start(0);
  expect_answer(0);
}

TEST_P(EveryVirtioDevice, RegistersAre32BitsWide) {
  driver.start(0);
  for (const std::size_t width : {1, 2, 8}) {
    std::array<std::byte, 8> bytes{};
    bytes.fill(std::byte{0xa5});
    device().read(kMagicValue, std::span(bytes).first(width));
    for (std::size_t i = 0; i < width; ++i) EXPECT_EQ(bytes.at(i), std::byte{0});
    device().write(kStatus, std::span(bytes).first(width));
  }
  EXPECT_EQ(device().signals().faults(GuestFault::kRegister), 6U);
  EXPECT_EQ(driver.status() & kStatusDriverOk, kStatusDriverOk) << "a byte of zero would be a reset";
}

TEST_P(EveryVirtioDevice, TheConfigurationSpaceEndsInZeros) {
  std::array<std::byte, 8> bytes{};
  for (const std::uint64_t offset : {device().device().config_bytes(), std::size_t{0xef8}, std::size_t{0xf00}}) {
    bytes.fill(std::byte{0xa5});
    device().read(kConfig + offset, bytes);
    EXPECT_EQ(bytes, (std::array<std::byte, 8>{})) << offset;
    device().write(kConfig + offset, bytes);
  }
}

TEST_P(EveryVirtioDevice, WithEventIndicesItInterruptsWhenTheIndexIsPassed) {
  driver.start(kFeatureEventIdx);
  const unsigned queue = GetParam().queue;
  driver.set_used_event(queue, 2);
  expect_answer(0);
  expect_answer(1);
  settle();
  EXPECT_FALSE(specimen->line.level);
  expect_answer(2);
  settle();
  EXPECT_TRUE(specimen->line.level);
  EXPECT_EQ(driver.avail_event(queue), 3U) << "asks for the next request";
}

TEST_P(EveryVirtioDevice, WithoutEventIndicesTheFlagSilencesIt) {
  driver.start(0);
  driver.set_no_interrupt(GetParam().queue, true);
  expect_answer(0);
  settle();
  EXPECT_FALSE(specimen->line.level);
  driver.set_no_interrupt(GetParam().queue, false);
  expect_answer(1);
  settle();
  EXPECT_TRUE(specimen->line.level);
}

TEST_P(EveryVirtioDevice, IndicesWrapAround) {
  driver.start(kFeatureEventIdx);
  const unsigned queue = GetParam().queue;
  driver.describe(queue, 0, request_at(0));
  const std::uint16_t size = driver.rings(queue).size;
  for (unsigned i = 0; i < 0x10000U + size; i += size) {
    for (unsigned k = 0; k < size; ++k) driver.offer(queue, 0);
    driver.notify(queue);
    for (unsigned k = 0; k < size; ++k) ASSERT_TRUE(answer().has_value()) << i + k;
  }
}

TEST_P(EveryVirtioDevice, SavedLoadedAndSavedAgainIsTheSameAndGoesOn) {
  driver.start(kFeatureEventIdx);
  expect_answer(0);
  settle();
  const DeviceState state = saved();
  const bool level = specimen->line.level;
  move_with(state);
  EXPECT_EQ(saved().bytes, state.bytes);
  EXPECT_EQ(specimen->line.level, level);
  expect_answer(1);
}

// The notification is lost with the host: the driver added to the queue when the vCPUs were stopped, or its eventfd was
// never read.
TEST_P(EveryVirtioDevice, ARequestWithoutItsNotificationIsServedAfterAMove) {
  driver.start(0);
  driver.describe(GetParam().queue, 3, request_at(3));
  ASSERT_TRUE(device().quiesce(Deadline::after(kAnswerWait)).ok());
  driver.offer(GetParam().queue, 3);
  const DeviceState state = device().save();
  EXPECT_EQ(driver.used_index(GetParam().queue), 0U) << "nothing is served while quiet";
  move_with(state);
  const auto used = answer();
  ASSERT_TRUE(used.has_value());
  EXPECT_EQ(used->head, 3U);
}

TEST_P(EveryVirtioDevice, WhileQuietNothingIsServed) {
  driver.start(0);
  ASSERT_TRUE(device().quiesce(Deadline::after(kAnswerWait)).ok());
  driver.send(GetParam().queue, 0, request_at(0));
  EXPECT_EQ(driver.used_index(GetParam().queue), 0U);
  EXPECT_TRUE(device().quiesce(Deadline::after(kAnswerWait)).ok()) << "a second time is fine";
  device().resume();
  EXPECT_TRUE(answer().has_value());
  device().resume();
}

TEST_P(EveryVirtioDevice, ADeviceThatNeedsAResetStillDoesAfterAMove) {
  driver.start(0);
  driver.set_available(GetParam().queue, 1000);
  driver.notify(GetParam().queue);
  expect_needs_reset();
  const DeviceState state = saved();
  move_with(state);
  EXPECT_TRUE(driver.needs_reset());
  EXPECT_TRUE(specimen->line.level);
  EXPECT_EQ(saved().bytes, state.bytes);
  driver.start(0);
  expect_answer(0);
}

TEST_P(EveryVirtioDevice, AWorkingDeviceGoesOnAfterARefusedLoad) {
  driver.start(kFeatureEventIdx);
  expect_answer(0);
  settle();
  const DeviceState good = saved();
  ASSERT_TRUE(device().quiesce(Deadline::after(kAnswerWait)).ok());
  for (std::size_t at = 0; at < good.bytes.size(); ++at) {
    DeviceState bad = good;
    bad.bytes.resize(at);
    EXPECT_FALSE(device().load(bad).ok()) << at;
  }
  DeviceState other_type = good;
  other_type.bytes[0] ^= std::byte{0x80};
  EXPECT_FALSE(device().load(other_type).ok());
  DeviceState other_device_state = good;  // the device's own version, behind everything of the transport
  const DeviceState own = device().device().save();
  other_device_state.bytes[good.bytes.size() - own.bytes.size() - 8] ^= std::byte{0x80};
  EXPECT_FALSE(device().load(other_device_state).ok());
  EXPECT_EQ(device().save().bytes, good.bytes);
  device().resume();
  expect_answer(1);
}

TEST_P(EveryVirtioDevice, AFeatureThatIsNotOfferedHereIsNamed) {
  driver.start(0);
  DeviceState state = saved();
  unsigned bit = 0;
  while ((driver.offered() >> bit & 1) != 0) ++bit;
  state.bytes[16 + bit / 8] |= std::byte{1} << (bit % 8);  // of the driver's features
  auto fresh = std::make_unique<testing::VirtioSpecimen>(GetParam(), *memory);
  const Status status = fresh->device.load(state);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), Errc::kFailedPrecondition);
  EXPECT_NE(status.error().message().find("virtio0: the guest uses features"), std::string::npos);
}

// A destination loads the devices before or after memory, as it comes.
TEST_P(EveryVirtioDevice, LoadingDoesNotTouchMemory) {
  driver.start(0);
  expect_answer(0);
  const DeviceState state = saved();
  auto nothing = memory::GuestMemory::reserve(testing::kDriverMemory).value();  // PROT_NONE
  testing::VirtioSpecimen there(GetParam(), *nothing);
  ASSERT_TRUE(there.device.load(state).ok());
  EXPECT_EQ(there.device.save().bytes, state.bytes);
}

INSTANTIATE_TEST_SUITE_P(Virtio, EveryVirtioDevice, ::testing::ValuesIn(testing::virtio_kinds()),
                         [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(VirtioThreadedDevice, AQueueThatCannotBeTakenAwayNeedsAReset) {
  const auto memory = testing::small_memory();
  testing::VirtioSpecimen specimen(testing::virtio_kinds().back(), *memory);
  specimen.device.resume();
  VirtioDriver driver(specimen.device, *memory);
  driver.start(0);
  driver.write(kQueueSel, 0);
  auto& threaded = dynamic_cast<testing::ThreadedDevice&>(specimen.device.device());
  {
    const auto busy = threaded.busy();
    std::thread([&] { driver.write(kQueueReady, 0); }).join();
  }
  EXPECT_TRUE(driver.needs_reset());
  EXPECT_EQ(driver.read(kQueueReady), 1U);
  EXPECT_EQ(specimen.device.signals().faults(GuestFault::kQueueSetup), 1U);
}

TEST(VirtioThreadedDevice, ADeviceThatDoesNotComeToRestRefusesAndGoesOn) {
  const auto memory = testing::small_memory();
  testing::VirtioSpecimen specimen(testing::virtio_kinds().back(), *memory);
  specimen.device.resume();
  auto& threaded = dynamic_cast<testing::ThreadedDevice&>(specimen.device.device());
  {
    const auto busy = threaded.busy();
    std::thread([&] {
      const Status status = specimen.device.quiesce(Deadline::after(std::chrono::milliseconds(1)));
      ASSERT_FALSE(status.ok());
      EXPECT_EQ(status.error().code(), Errc::kDeadlineExceeded);
    }).join();
  }
  EXPECT_TRUE(specimen.device.quiesce(Deadline::after(std::chrono::seconds(10))).ok());
}

}  // namespace
}  // namespace fvmm::devices
