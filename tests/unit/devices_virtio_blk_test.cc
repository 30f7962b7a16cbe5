// virtio-blk: what is its own. What every virtio device promises is in devices_virtio_conformance_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "support/virtio_device_test.h"
#include "support/virtio_kinds.h"

namespace fvmm::devices {
namespace {

using testing::Descriptor;
using testing::kDriverBuffers;
using virtio::kDescriptorNext;
using virtio::kDescriptorWrite;

constexpr std::uint64_t kDiskBytes = kMiB;
constexpr std::uint64_t kHeaderAt = kDriverBuffers;
constexpr std::uint64_t kStatusAt = kDriverBuffers + 256;
constexpr std::uint64_t kDataAt = kDriverBuffers + 4096;
constexpr std::uint32_t kIn = 0, kOut = 1, kFlush = 4, kGetId = 8, kDiscard = 11, kWriteZeroes = 13;

class Blk : public ::testing::Test {
 protected:
  Blk() { device.resume(); }

  void header(std::uint32_t type, std::uint64_t sector, std::uint64_t at = kHeaderAt) {
    driver.put(at, type);
    driver.put(at + 4, std::uint32_t{0});
    driver.put(at + 8, sector);
  }
  /// Header, data, status as three descriptors from `first`; the status byte is 0xff until it is answered.
  void offer(std::uint16_t first, std::uint32_t data_bytes, std::uint16_t data_flags, std::uint64_t data_at = kDataAt) {
    const auto next = static_cast<std::uint16_t>(first + 1);
    const auto last = static_cast<std::uint16_t>(first + 2);
    driver.put(kStatusAt + first, std::uint8_t{0xff});
    driver.describe(
        0, first, {.address = kHeaderAt, .bytes = 16, .flags = kDescriptorNext, .next = data_bytes != 0 ? next : last});
    driver.describe(0, next,
                    {.address = data_at,
                     .bytes = data_bytes,
                     .flags = static_cast<std::uint16_t>(data_flags | kDescriptorNext),
                     .next = last});
    driver.describe(0, last, {.address = kStatusAt + first, .bytes = 1, .flags = kDescriptorWrite});
    driver.offer(0, first);
    driver.notify(0);
  }
  std::optional<testing::VirtioDriver::Used> answered() {
    const Deadline deadline = Deadline::after(std::chrono::seconds(30));
    while (!deadline.passed()) {
      if (const auto used = driver.take_used(0)) return used;
      std::this_thread::yield();
    }
    return std::nullopt;
  }
  /// One request to its end; its status.
  int request(std::uint32_t type, std::uint64_t sector, std::uint32_t data_bytes, std::uint16_t data_flags) {
    header(type, sector);
    offer(0, data_bytes, data_flags);
    EXPECT_TRUE(answered().has_value());
    return driver.get<std::uint8_t>(kStatusAt);
  }
  int range(std::uint32_t type, std::uint64_t sector, std::uint32_t sectors, std::uint32_t flags = 0) {
    driver.put(kDataAt, sector);
    driver.put(kDataAt + 8, sectors);
    driver.put(kDataAt + 12, flags);
    return request(type, 0, 16, 0);
  }

  testing::FakeIrqLine line;
  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  VirtioMmio device{"virtio0", {.memory = *memory, .line = line}, testing::blk_over_memory(kDiskBytes)};
  testing::VirtioDriver driver{device, *memory};
};

TEST_F(Blk, TellsItsSizeAndLimits) {
  EXPECT_EQ(driver.read(virtio::kConfig), kDiskBytes / 512);
  EXPECT_EQ(driver.read(virtio::kConfig + 12), kBlkSegmentsMax);
  EXPECT_EQ(driver.read(virtio::kConfig + 20), 512u);
  EXPECT_EQ(driver.read(virtio::kConfig + 36), kBlkRangeSectorsMax);
}

TEST_F(Blk, ReadsBackWhatItWroteAndInterrupts) {
  driver.start(0);
  driver.put_text(kDataAt, std::string(1024, 'x'));
  EXPECT_EQ(request(kOut, 7, 1024, 0), 0);
  EXPECT_EQ(request(kFlush, 0, 0, 0), 0);
  driver.put_text(kDataAt, std::string(2048, '-'));
  EXPECT_EQ(request(kIn, 6, 2048, kDescriptorWrite), 0);
  EXPECT_EQ(driver.text(kDataAt, 2048), std::string(512, '\0') + std::string(1024, 'x') + std::string(512, '\0'));
  ASSERT_TRUE(device.quiesce(Deadline::after(std::chrono::seconds(30))).ok());
  EXPECT_TRUE(line.level);
}

TEST_F(Blk, MarksWhatTheKernelWrote) {
  driver.start(0);
  memory::Bitmap marks(memory->layout().pages());
  memory->device_marks().drain_into(marks);
  header(kIn, 0);
  offer(0, 8192, kDescriptorWrite, kDataAt + 0x10000);
  ASSERT_TRUE(answered().has_value());
  memory::Bitmap after(memory->layout().pages());
  memory->device_marks().drain_into(after);
  EXPECT_TRUE(after.test((kDataAt + 0x10000) / kPageBytes));
  EXPECT_TRUE(after.test((kDataAt + 0x10000) / kPageBytes + 1));
  EXPECT_FALSE(after.test((kDataAt + 0x10000) / kPageBytes + 2));
}

TEST_F(Blk, FailsWhatLiesPastTheEnd) {
  driver.start(0);
  constexpr std::uint64_t kSectors = kDiskBytes / 512;
  EXPECT_EQ(request(kIn, kSectors - 1, 512, kDescriptorWrite), 0);
  EXPECT_EQ(request(kIn, kSectors - 1, 1024, kDescriptorWrite), 1);
  EXPECT_EQ(request(kIn, kSectors, 512, kDescriptorWrite), 1);
  EXPECT_EQ(request(kOut, ~0ULL, 512, 0), 1);
  EXPECT_EQ(request(kOut, ~0ULL / 512, 512, 0), 1);
  EXPECT_EQ(request(kIn, 0, 511, kDescriptorWrite), 1) << "not whole sectors";
  EXPECT_FALSE(driver.needs_reset());
}

TEST_F(Blk, KnowsItsRequestsAndNoOthers) {
  driver.start(0);
  EXPECT_EQ(request(2, 0, 512, 0), 2);
  EXPECT_EQ(request(~0U, 0, 512, kDescriptorWrite), 2);
  EXPECT_EQ(request(kGetId, 0, 20, kDescriptorWrite), 0);
  EXPECT_EQ(driver.text(kDataAt, 20), std::string("fvmm-test") + std::string(11, '\0'));
}

TEST_F(Blk, DiscardsAndZeroes) {
  driver.start(0);
  driver.put_text(kDataAt, std::string(4096, 'x'));
  EXPECT_EQ(request(kOut, 0, 4096, 0), 0);
  EXPECT_EQ(range(kWriteZeroes, 1, 2, 1), 0);
  EXPECT_EQ(range(kDiscard, 4, 2), 0);
  EXPECT_EQ(request(kIn, 0, 2048, kDescriptorWrite), 0);
  EXPECT_EQ(driver.text(kDataAt, 2048), std::string(512, 'x') + std::string(1024, '\0') + std::string(512, 'x'));
  EXPECT_EQ(range(kDiscard, 0, 1, 1), 2) << "a flag that a discard does not have";
  EXPECT_EQ(range(kWriteZeroes, 0, kBlkRangeSectorsMax), 1) << "past the end";
  EXPECT_EQ(range(kWriteZeroes, 0, kBlkRangeSectorsMax + 1), 1) << "past the limit";
  EXPECT_EQ(request(kDiscard, 0, 32, 0), 1) << "two ranges";
  EXPECT_EQ(request(kDiscard, 0, 0, 0), 1) << "no range";
}

TEST_F(Blk, AnswersARequestWithoutHeaderOrStatusAndCountsIt) {
  driver.start(0);
  driver.send(0, 0, {.address = kHeaderAt, .bytes = 16, .flags = 0});
  ASSERT_EQ(answered(), (testing::VirtioDriver::Used{.head = 0, .bytes = 0}));
  driver.put(kStatusAt, std::uint8_t{0xff});
  driver.send(0, 1, {.address = kStatusAt, .bytes = 1, .flags = kDescriptorWrite});
  ASSERT_EQ(answered(), (testing::VirtioDriver::Used{.head = 1, .bytes = 1}));
  EXPECT_EQ(driver.get<std::uint8_t>(kStatusAt), 1);
  EXPECT_FALSE(driver.needs_reset());
}

TEST_F(Blk, QuiesceLeavesNothingUnderWayAndResumeGoesOn) {
  driver.start(0);
  header(kIn, 0);
  for (std::uint16_t i = 0; i < 60; ++i) offer(static_cast<std::uint16_t>(3 * i), 4096, kDescriptorWrite);
  ASSERT_TRUE(device.quiesce(Deadline::after(std::chrono::seconds(30))).ok());
  const std::uint16_t done = driver.used_index(0);
  header(kIn, 0);
  offer(190, 512, kDescriptorWrite);  // while quiet: nobody may look
  std::this_thread::yield();
  EXPECT_EQ(driver.used_index(0), done);
  device.resume();
  const Deadline deadline = Deadline::after(std::chrono::seconds(30));
  while (driver.used_index(0) != 61 && !deadline.passed()) std::this_thread::yield();
  EXPECT_EQ(driver.used_index(0), 61);
}

/// Reads that end only for somebody who waits for them.
class SlowReads final : public disk::FileIo {
 public:
  explicit SlowReads(std::atomic<int>& begun) : begun_(begun) {}
  [[nodiscard]] std::size_t operations_max() const override { return 8; }
  void read(int, std::span<const iovec> into, std::uint64_t, std::uint64_t token) override {
    under_way_.emplace_back(token, static_cast<int>(into[0].iov_len));
    ++begun_;
  }
  void write(int, std::span<const iovec>, std::uint64_t, std::uint64_t) override {}
  void sync(int, std::uint64_t) override {}
  void allocate(int, int, std::uint64_t, std::uint64_t, std::uint64_t) override {}
  Status submit() override { return {}; }
  Status poll(const Deadline& deadline, const Ended& ended) override {
    if (deadline.passed()) return {};
    for (const auto& [token, bytes] : std::exchange(under_way_, {})) ended(token, bytes);
    return {};
  }
  [[nodiscard]] int wait_fd() const override { return -1; }

 private:
  std::atomic<int>& begun_;
  std::vector<std::pair<std::uint64_t, int>> under_way_;
};

TEST_F(Blk, AVmThatEndsWaitsForWhatItsDiskHasUnderWay) {
  std::atomic<int> begun = 0;
  {
    VirtioMmio ending{"virtio0",
                      {.memory = *memory, .line = line},
                      testing::blk_over_memory(kDiskBytes, std::make_unique<SlowReads>(begun))};
    testing::VirtioDriver its_driver{ending, *memory};
    ending.resume();
    its_driver.start(0);
    header(kIn, 0);
    its_driver.describe(0, 0, {.address = kHeaderAt, .bytes = 16, .flags = kDescriptorNext, .next = 1});
    its_driver.describe(0, 1,
                        {.address = kDataAt, .bytes = 512, .flags = kDescriptorNext | kDescriptorWrite, .next = 2});
    its_driver.describe(0, 2, {.address = kStatusAt, .bytes = 1, .flags = kDescriptorWrite});
    its_driver.offer(0, 0);
    its_driver.notify(0);
    const Deadline deadline = Deadline::after(std::chrono::seconds(30));
    while (begun == 0 && !deadline.passed()) std::this_thread::yield();
  }
  EXPECT_EQ(begun, 1);
}

TEST_F(Blk, StateIsOfADiskOfThisSize) {
  auto other = testing::blk_over_memory(2 * kDiskBytes);
  auto same = testing::blk_over_memory(kDiskBytes);
  const DeviceState state = same->save();
  EXPECT_TRUE(same->load(state).ok());
  const Status refused = other->load(state);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code(), Errc::kFailedPrecondition);
  DeviceState longer = state;
  longer.bytes.push_back({});
  EXPECT_FALSE(same->load(longer).ok());
  DeviceState later = state;
  ++later.version;
  EXPECT_FALSE(same->load(later).ok());
}

TEST(BlkGate, HoldsWritesToARawImageAndLetsReadsPass) {
  OutputGate gate;
  testing::FakeIrqLine line;
  const auto memory = testing::small_memory();
  disk::RawImage image{.file = UniqueFd(::memfd_create("disk", MFD_CLOEXEC)), .bytes = kDiskBytes};
  ASSERT_EQ(::ftruncate(image.file.get(), static_cast<off_t>(kDiskBytes)), 0);
  const UniqueFd file(::dup(image.file.get()));
  VirtioMmio device{"virtio0",
                    {.memory = *memory, .line = line},
                    std::make_unique<VirtioBlk>(VirtioBlkSetup{.stack = disk::Stack::raw(std::move(image), true),
                                                               .io = disk::make_ring_io().value(),
                                                               .gate = gate,
                                                               .id = ""})};
  testing::VirtioDriver driver{device, *memory};
  device.resume();
  driver.start(0);
  gate.hold(1);
  driver.put(kHeaderAt, std::uint64_t{kOut});
  driver.put(kHeaderAt + 8, std::uint64_t{0});
  driver.put_text(kDataAt, std::string(512, 'x'));
  driver.describe(0, 0, {.address = kHeaderAt, .bytes = 16, .flags = kDescriptorNext, .next = 1});
  driver.describe(0, 1, {.address = kDataAt, .bytes = 512, .flags = kDescriptorNext, .next = 2});
  driver.describe(0, 2, {.address = kStatusAt, .bytes = 1, .flags = kDescriptorWrite});
  driver.offer(0, 0);
  driver.notify(0);
  const Deadline deadline = Deadline::after(std::chrono::seconds(30));
  while (gate.counts().held_items == 0 && !deadline.passed()) std::this_thread::yield();
  EXPECT_EQ(gate.counts().held_items, 1u);
  EXPECT_FALSE(device.quiesce(Deadline::after(std::chrono::milliseconds(20))).ok());
  char first = 0;
  EXPECT_EQ(::pread(file.get(), &first, 1, 0), 1);
  EXPECT_EQ(first, '\0');
  gate.release(1);
  EXPECT_TRUE(device.quiesce(Deadline::after(std::chrono::seconds(30))).ok());
  EXPECT_TRUE(driver.take_used(0).has_value());
  EXPECT_EQ(::pread(file.get(), &first, 1, 0), 1);
  EXPECT_EQ(first, 'x');
}

// Random requests with random buffers: each is answered once, and nothing outside RAM or the disk is touched.
TEST_F(Blk, TakesAnyRequest) {
  std::mt19937 random(7);
  driver.start(0);
  for (int round = 0; round < 2000; ++round) {
    static constexpr std::uint32_t kTypes[] = {kIn, kOut, kFlush, kGetId, kDiscard, kWriteZeroes, 99};
    header(kTypes[random() % std::size(kTypes)], random() % 4 == 0 ? random() * 0x1'0000'0001ULL : random() % 2050);
    const auto bytes = static_cast<std::uint32_t>(random() % 3 == 0 ? 1 + random() % 70000 : 512 * (1 + random() % 16));
    offer(0, bytes, random() % 2 == 0 ? kDescriptorWrite : 0, kDataAt + random() % 65536);
    if (driver.needs_reset()) driver.start(0);
    const auto used = answered();
    ASSERT_TRUE(used.has_value()) << "round " << round;
    ASSERT_LE(driver.get<std::uint8_t>(kStatusAt), 2) << "round " << round;
  }
}

}  // namespace
}  // namespace fvmm::devices
