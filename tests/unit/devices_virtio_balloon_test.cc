// virtio-balloon: what is its own. What every virtio device promises is in devices_virtio_conformance_test.cc, what a
// discard does to guest memory in memory_discard_test.cc.
#include "devices/virtio_balloon.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <set>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/id.h"
#include "support/virtio_driver.h"

namespace fvmm::devices {
namespace {

using testing::kDriverBuffers;
using testing::kDriverMemory;
using testing::VirtioDriver;
using virtio::kDescriptorNext;
using virtio::kDescriptorWrite;

constexpr std::uint64_t kStatistics = 1 << 1;
constexpr std::uint64_t kDeflateOnOom = 1 << 2;
constexpr std::uint64_t kReporting = 1 << 5;
constexpr unsigned kInflateQueue = 0;
constexpr unsigned kDeflateQueue = 1;
constexpr unsigned kStatisticsQueue = 2;
constexpr std::uint32_t kFirst = 8 * kMiB / kPageBytes;  // PFNs from here on hold nothing that a test needs
constexpr std::uint32_t kPfns = kDriverMemory / kPageBytes;

class Balloon : public ::testing::Test {
 protected:
  Balloon() { device->resume(); }
  VirtioBalloon& balloon() { return dynamic_cast<VirtioBalloon&>(device->device()); }
  std::unique_ptr<VirtioMmio> make() {
    return std::make_unique<VirtioMmio>("virtio0", VirtioMmio::Surroundings{.memory = *memory, .line = line},
                                        std::make_unique<VirtioBalloon>());
  }
  /// The guest goes on with another device of the same state.
  void move() {
    ASSERT_TRUE(device->quiesce(Deadline::after(std::chrono::seconds(1))).ok());
    auto there = make();
    const Status loaded = there->load(device->save());
    ASSERT_TRUE(loaded.ok()) << loaded.error().message();
    device = std::move(there);
    driver.move_to(*device);
    device->resume();
  }
  /// Every page that tests discard says 9.
  void fill() {
    ASSERT_TRUE(memory->write(std::uint64_t{kFirst} * kPageBytes, std::vector<std::byte>(8 * kMiB, std::byte{9})).ok());
    (void)marks();
  }
  [[nodiscard]] int byte_of(std::uint64_t pfn) const { return driver.get<std::uint8_t>(pfn * kPageBytes); }
  /// A request of these page numbers, in one buffer. Queue 0 inflates, 1 deflates.
  void send_pfns(unsigned queue, const std::vector<std::uint32_t>& pfns) {
    for (std::size_t i = 0; i < pfns.size(); ++i) driver.put(kDriverBuffers + 4 * i, pfns[i]);
    driver.send(queue, 0, {.address = kDriverBuffers, .bytes = static_cast<std::uint32_t>(4 * pfns.size())});
  }
  /// A buffer of statistics: tags and values, and `more` bytes that are no whole entry.
  void send_statistics(std::uint16_t index, const std::vector<std::pair<std::uint16_t, std::uint64_t>>& all,
                       std::uint32_t more = 0) {
    const std::uint64_t at = kDriverBuffers + 0x1000ULL * index;
    for (std::size_t i = 0; i < all.size(); ++i) {
      driver.put(at + 10 * i, all[i].first);
      driver.put(at + 10 * i + 2, all[i].second);
    }
    driver.send(kStatisticsQueue, index, {.address = at, .bytes = static_cast<std::uint32_t>(10 * all.size()) + more});
  }
  memory::Bitmap marks() {
    memory::Bitmap out(memory->layout().pages());
    memory->device_marks().drain_into(out);
    return out;
  }

  testing::FakeIrqLine line;
  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  std::unique_ptr<VirtioMmio> device = make();
  VirtioDriver driver{*device, *memory};
};

TEST_F(Balloon, OffersNeitherPagePoisonNorHintsNorMustTellHost) {
  EXPECT_EQ(driver.read(virtio::kDeviceId), 5U);
  EXPECT_EQ(driver.offered() & 0xffffff, kStatistics | kDeflateOnOom | kReporting);
}

TEST_F(Balloon, AnInflatedPageIsGivenBackAndMarked) {
  driver.start(0);
  fill();
  send_pfns(kInflateQueue, {kFirst + 4, kFirst + 1, kFirst + 2, kFirst + 1, kPfns - 1});
  EXPECT_EQ(driver.take_used(kInflateQueue), (VirtioDriver::Used{.head = 0, .bytes = 0}));
  const auto written = marks();
  const std::set<std::uint64_t> gone{kFirst + 1, kFirst + 2, kFirst + 4, kPfns - 1};
  for (std::uint64_t pfn = kFirst; pfn < kPfns; ++pfn) {
    EXPECT_EQ(byte_of(pfn), gone.contains(pfn) ? 0 : 9) << pfn;
    EXPECT_EQ(written.test(pfn), gone.contains(pfn)) << pfn;
  }
  EXPECT_EQ(balloon().figures().given_back, 4U);
  EXPECT_EQ(balloon().figures().not_given_back, 0U);
}

TEST_F(Balloon, OnATemplateTheTemplatesPageComesBack) {
  const UniqueFd file(::memfd_create("template", MFD_CLOEXEC));
  ASSERT_TRUE(write_all(file.get(), std::vector<std::byte>(kDriverMemory, std::byte{5}), 0).ok());
  ASSERT_TRUE(memory->map_private(file.get()).ok());
  driver.start(0);
  fill();
  send_pfns(kInflateQueue, {kFirst});
  EXPECT_EQ(byte_of(kFirst), 5);
  EXPECT_EQ(byte_of(kFirst + 1), 9);
  EXPECT_TRUE(marks().test(kFirst));
}

TEST_F(Balloon, ADeflatedPageStaysAsItIs) {
  driver.start(0);
  fill();
  send_pfns(kDeflateQueue, {kFirst});
  EXPECT_EQ(driver.take_used(kDeflateQueue), (VirtioDriver::Used{.head = 0, .bytes = 0}));
  EXPECT_EQ(byte_of(kFirst), 9);
  EXPECT_FALSE(marks().test(kFirst));
}

TEST_F(Balloon, APageThatIsNoRamNeedsAResetAndNoneOfItsRequestGoes) {
  std::uint64_t faults = 0;
  for (const unsigned queue : {kInflateQueue, kDeflateQueue}) {
    for (const std::uint32_t bad : {kPfns, 0xc0000U, 0xd0000U, 0xfee00U, 0x100000U, 0xffffffffU}) {
      driver.start(0);
      fill();
      send_pfns(queue, {kFirst, kFirst + 1, bad});
      EXPECT_TRUE(driver.needs_reset()) << bad;
      EXPECT_EQ(device->signals().faults(GuestFault::kRequest), ++faults);
      EXPECT_EQ(driver.take_used(queue), std::nullopt);
      EXPECT_EQ(byte_of(kFirst), 9);
      EXPECT_FALSE(marks().test(kFirst));
    }
  }
  EXPECT_EQ(balloon().figures().given_back, 0U);
}

TEST_F(Balloon, ARequestHoldsWholeNumbersUpToALimit) {
  driver.start(0);
  send_pfns(kInflateQueue, std::vector<std::uint32_t>(kBalloonRequestPfnsMax, kFirst));
  EXPECT_TRUE(driver.take_used(kInflateQueue).has_value());
  EXPECT_EQ(balloon().figures().given_back, 1U);
  const std::vector<testing::Descriptor> bad{
      {.address = kDriverBuffers, .bytes = 4 * kBalloonRequestPfnsMax + 4},
      {.address = kDriverBuffers, .bytes = 6},
      {.address = kDriverBuffers, .bytes = 4, .flags = kDescriptorWrite},  // says nothing
  };
  for (const auto& each : bad) {
    driver.start(0);
    driver.send(kInflateQueue, 0, each);
    EXPECT_TRUE(driver.needs_reset()) << each.bytes;
    EXPECT_EQ(driver.take_used(kInflateQueue), std::nullopt);
  }
}

TEST_F(Balloon, NumbersMayBeSplitOverBuffers) {
  driver.start(0);
  fill();
  driver.put(kDriverBuffers, kFirst);
  driver.put(kDriverBuffers + 4, kFirst + 7);
  driver.describe(kInflateQueue, 1, {.address = kDriverBuffers + 3, .bytes = 5});
  driver.send(kInflateQueue, 0, {.address = kDriverBuffers, .bytes = 3, .flags = kDescriptorNext, .next = 1});
  EXPECT_EQ(byte_of(kFirst), 0);
  EXPECT_EQ(byte_of(kFirst + 7), 0);
  EXPECT_EQ(byte_of(kFirst + 1), 9);
}

// The specification's number of the reporting queue is 4, Linux's 3, or 2 without statistics.
TEST_F(Balloon, ReportedPagesAreGivenBackWhicheverQueueTheDriverTakesForIt) {
  for (const auto& [features, queue] :
       {std::pair{kReporting | kStatistics, 4U}, std::pair{kReporting | kStatistics, 3U}, std::pair{kReporting, 3U},
        std::pair{kReporting, 2U}}) {
    driver.start(features);
    fill();
    const std::uint64_t at = std::uint64_t{kFirst} * kPageBytes;
    driver.describe(queue, 1, {.address = at + 4 * kPageBytes - 1, .bytes = kPageBytes + 2, .flags = kDescriptorWrite});
    driver.send(queue, 0,
                {.address = at, .bytes = 2 * kPageBytes, .flags = kDescriptorWrite | kDescriptorNext, .next = 1});
    EXPECT_EQ(driver.take_used(queue), (VirtioDriver::Used{.head = 0, .bytes = 0}));
    const auto written = marks();
    for (std::uint64_t pfn = kFirst; pfn < kFirst + 8; ++pfn) {
      const bool gone = pfn < kFirst + 2 || pfn == kFirst + 4;  // of the second buffer only what is a whole page
      EXPECT_EQ(byte_of(pfn), gone ? 0 : 9) << pfn - kFirst;
      EXPECT_EQ(written.test(pfn), gone) << pfn - kFirst;
    }
    EXPECT_FALSE(driver.needs_reset());
  }
  EXPECT_EQ(balloon().figures().given_back, 12U);
}

TEST_F(Balloon, WithoutReportingItsQueueIsNotServed) {
  driver.start(kStatistics);
  fill();
  for (const unsigned queue : {3U, 4U}) {
    driver.send(queue, 0, {.address = 8 * kMiB, .bytes = kPageBytes, .flags = kDescriptorWrite});
    EXPECT_EQ(driver.take_used(queue), std::nullopt);
  }
  EXPECT_EQ(byte_of(kFirst), 9);
}

TEST_F(Balloon, OneNotificationGivesBackUpToALimitAndAnswersAll) {
  driver.start(kReporting | kStatistics);
  fill();
  constexpr std::uint32_t kBytes = 4 * kMiB;  // the lower half, again and again
  constexpr auto kRequests = static_cast<std::uint16_t>(kBalloonDiscardPages * kPageBytes / kBytes);
  constexpr unsigned kQueue = 4;
  for (std::uint16_t i = 0; i < kRequests; ++i) {
    driver.describe(kQueue, i, {.address = 8 * kMiB, .bytes = kBytes, .flags = kDescriptorWrite});
    driver.offer(kQueue, i);
  }
  driver.describe(kQueue, kRequests, {.address = 12 * kMiB, .bytes = kPageBytes, .flags = kDescriptorWrite});
  driver.offer(kQueue, kRequests);
  driver.notify(kQueue);
  for (std::uint16_t i = 0; i <= kRequests; ++i) EXPECT_EQ(driver.take_used(kQueue)->head, i);
  EXPECT_EQ(balloon().figures().given_back, kBalloonDiscardPages);
  EXPECT_EQ(balloon().figures().not_given_back, 1U);
  EXPECT_EQ(byte_of(12 * kMiB / kPageBytes), 9);
  driver.send(kQueue, 0, {.address = 12 * kMiB, .bytes = kPageBytes, .flags = kDescriptorWrite});
  EXPECT_EQ(byte_of(12 * kMiB / kPageBytes), 0) << "the next one begins anew";
}

// resume() runs on the VM's owner, on whom a capture that has just begun depends: a discard there could wait for ever.
TEST_F(Balloon, WhatWasOfferedAroundAPauseIsAnsweredAndKept) {
  driver.start(0);
  fill();
  driver.put(kDriverBuffers, kFirst);
  driver.describe(kInflateQueue, 0, {.address = kDriverBuffers, .bytes = 4});
  driver.offer(kInflateQueue, 0);
  ASSERT_TRUE(device->quiesce(Deadline::after(std::chrono::seconds(1))).ok());
  device->resume();
  EXPECT_TRUE(driver.take_used(kInflateQueue).has_value());
  EXPECT_EQ(byte_of(kFirst), 9);
  EXPECT_EQ(balloon().figures().not_given_back, 1U);
}

TEST_F(Balloon, ATargetIsAConfigurationChangeAndTheAnswerTheDriversWord) {
  driver.start(0);
  balloon().set_target(1000);
  EXPECT_TRUE(line.level);
  EXPECT_EQ(driver.read(virtio::kInterruptStatus), virtio::kInterruptConfig);
  EXPECT_EQ(driver.read(virtio::kConfigGeneration), 1U);
  EXPECT_EQ(driver.read(virtio::kConfig), 1000U);
  balloon().set_target(1000);
  EXPECT_EQ(driver.read(virtio::kConfigGeneration), 1U) << "nothing has changed";
  driver.write(virtio::kConfig, 77);
  driver.write(virtio::kConfig + 4, 0x01020304);
  EXPECT_EQ(driver.read(virtio::kConfig), 1000U) << "the host's";
  EXPECT_EQ(driver.read(virtio::kConfig + 4), 0x01020304U);
  const std::byte low{0xff};
  device->write(virtio::kConfig + 5, std::span(&low, 1));
  EXPECT_EQ(balloon().figures().actual_pages, 0x0102ff04U);
  driver.write(virtio::kStatus, 0);
  EXPECT_EQ(driver.read(virtio::kConfig), 1000U) << "is wanted of the next driver, too";
  EXPECT_EQ(driver.read(virtio::kConfig + 4), 0U);
}

TEST_F(Balloon, StatisticsComeWhenTheDriverHasSomeAndWhenItIsAsked) {
  driver.start(kStatistics);
  EXPECT_EQ(balloon().figures().statistics, BalloonStatistics());
  balloon().ask_statistics();  // there is no buffer to ask with
  send_statistics(0, {{4, 1111}, {5, 2222}, {0xfff0, 3}}, 9);
  EXPECT_EQ(driver.take_used(kStatisticsQueue), std::nullopt) << "kept until there is something to ask";
  EXPECT_EQ(balloon().figures().statistics[4], 1111U);
  EXPECT_EQ(balloon().figures().statistics[5], 2222U);
  EXPECT_EQ(balloon().figures().statistics[0], std::nullopt);
  EXPECT_FALSE(line.level);
  balloon().ask_statistics();
  EXPECT_EQ(driver.take_used(kStatisticsQueue), (VirtioDriver::Used{.head = 0, .bytes = 0}));
  EXPECT_TRUE(line.level);
  balloon().ask_statistics();  // it has been asked
  EXPECT_EQ(driver.take_used(kStatisticsQueue), std::nullopt);
  send_statistics(0, {{15, 5}});
  EXPECT_EQ(balloon().figures().statistics[4], std::nullopt) << "only the last ones";
  EXPECT_EQ(balloon().figures().statistics[15], 5U);
  EXPECT_EQ(balloon_stat_name(4), "free_memory");
}

// As Linux does it: its notification comes before DRIVER_OK, and is ignored.
TEST_F(Balloon, StatisticsThatNobodyToldOfAreFoundWhenTheyAreAskedFor) {
  driver.start(kStatistics);
  driver.put(kDriverBuffers, std::uint16_t{4});
  driver.put(kDriverBuffers + 2, std::uint64_t{1111});
  driver.describe(kStatisticsQueue, 0, {.address = kDriverBuffers, .bytes = 10});
  driver.offer(kStatisticsQueue, 0);
  EXPECT_EQ(balloon().figures().statistics[4], std::nullopt);
  balloon().ask_statistics();
  EXPECT_EQ(balloon().figures().statistics[4], 1111U);
  EXPECT_TRUE(driver.take_used(kStatisticsQueue).has_value()) << "and asked for newer ones";
}

TEST_F(Balloon, ASecondBufferOfStatisticsSetsTheFirstFree) {
  driver.start(kStatistics);
  send_statistics(0, {{4, 1}});
  send_statistics(1, {{4, 2}});
  EXPECT_EQ(driver.take_used(kStatisticsQueue)->head, 0U);
  EXPECT_EQ(balloon().figures().statistics[4], 2U);
  balloon().ask_statistics();
  EXPECT_EQ(driver.take_used(kStatisticsQueue)->head, 1U);
}

TEST_F(Balloon, OfTooManyStatisticsTheFirstAreRead) {
  driver.start(kStatistics);
  std::vector<std::pair<std::uint16_t, std::uint64_t>> many(kBalloonStatsRead - 1, {1, 1});
  many.push_back({2, 2});
  many.push_back({3, 3});
  send_statistics(0, many);
  EXPECT_EQ(balloon().figures().statistics[2], 2U);
  EXPECT_EQ(balloon().figures().statistics[3], std::nullopt);
}

TEST_F(Balloon, TheKeptBufferOfStatisticsMovesWithTheGuest) {
  driver.start(kStatistics);
  send_statistics(0, {{4, 1111}});
  ASSERT_TRUE(device->quiesce(Deadline::after(std::chrono::seconds(1))).ok());
  balloon().ask_statistics();
  EXPECT_EQ(driver.take_used(kStatisticsQueue), std::nullopt) << "while quiet nobody is asked";
  device->resume();
  move();
  EXPECT_EQ(balloon().figures().statistics[4], 1111U);
  balloon().ask_statistics();
  EXPECT_EQ(driver.take_used(kStatisticsQueue), (VirtioDriver::Used{.head = 0, .bytes = 0}));
}

TEST_F(Balloon, AQueueOfStatisticsThatIsTakenAwayTakesItsBufferWithIt) {
  driver.start(kStatistics);
  send_statistics(0, {{4, 1111}});
  driver.write(virtio::kQueueSel, kStatisticsQueue);
  driver.write(virtio::kQueueReady, 0);
  balloon().ask_statistics();
  EXPECT_EQ(driver.used_index(kStatisticsQueue), 0U);
}

TEST_F(Balloon, SizesMoveWithTheGuestAndCountsDoNot) {
  driver.start(0);
  balloon().set_target(500);
  driver.write(virtio::kConfig + 4, 1);
  send_pfns(kInflateQueue, {kFirst});
  move();
  EXPECT_EQ(driver.read(virtio::kConfig), 500U);
  EXPECT_EQ(driver.read(virtio::kConfig + 4), 1U);
  EXPECT_EQ(balloon().figures().given_back, 0U);
}

// Version 1, byte for byte: a change of this needs a new version that still reads this one.
TEST_F(Balloon, ItsStateIsPinned) {
  driver.start(kStatistics);
  balloon().set_target(0x01020304);
  driver.write(virtio::kConfig + 4, 0x0a0b0c0d);
  send_statistics(0, {{4, 0x1122334455667788}, {0, 7}});
  ASSERT_TRUE(device->quiesce(Deadline::after(std::chrono::seconds(1))).ok());
  const DeviceState state = balloon().save();
  EXPECT_EQ(state.version, 1U);
  EXPECT_EQ(to_hex(state.bytes),
            "04030201"            // target
            "0d0c0b0a"            // actual
            "1100"                // tags 0 and 4
            "0700000000000000"    // tag 0
            "8877665544332211");  // tag 4
  VirtioBalloon other;
  ASSERT_TRUE(other.load(state).ok());
  EXPECT_EQ(other.save().bytes, state.bytes);
  DeviceState newer = state;
  newer.version = 2;
  DeviceState shorter = state;
  shorter.bytes.pop_back();
  DeviceState longer = state;
  longer.bytes.push_back(std::byte{0});
  for (const DeviceState& bad : {newer, shorter, longer}) {
    EXPECT_FALSE(other.load(bad).ok());
    EXPECT_EQ(other.save().bytes, state.bytes);
  }
}

}  // namespace
}  // namespace fvmm::devices
