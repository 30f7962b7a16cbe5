// virtio-blk over a layer whose file two hosts reach: what one has flushed, the other sees.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "base/file.h"
#include "disk/open.h"
#include "support/temp_dir.h"
#include "support/virtio_kinds.h"

namespace fvmm::devices {
namespace {

using testing::kDriverBuffers;
using virtio::kDescriptorNext;
using virtio::kDescriptorWrite;

constexpr std::uint64_t kBytes = 4 * disk::kClusterBytes;
constexpr std::uint64_t kHeaderAt = kDriverBuffers;
constexpr std::uint64_t kStatusAt = kDriverBuffers + 256;
constexpr std::uint64_t kDataAt = kDriverBuffers + 4096;
constexpr std::uint32_t kIn = 0, kOut = 1;
const Deadline soon = Deadline::after(std::chrono::seconds(60));

/// One host's device over the layer, with a driver in its guest.
struct Host {
  explicit Host(const disk::DiskFiles& files)
      : blk(new VirtioBlk({.stack = disk::open_disk(files).value(),
                           .io = disk::make_ring_io().value(),
                           .gate = gate,
                           .id = "layer"})),
        device("virtio0", {.memory = *memory, .line = line}, std::unique_ptr<VirtioDevice>(blk)) {}

  /// One request of a sector to its end; its status.
  int request(std::uint32_t type, std::uint64_t sector) {
    driver.put(kHeaderAt, type);
    driver.put(kHeaderAt + 8, sector);
    driver.put(kStatusAt, std::uint8_t{0xff});
    const auto data = static_cast<std::uint16_t>(kDescriptorNext | (type == kIn ? kDescriptorWrite : 0));
    driver.describe(0, 0, {.address = kHeaderAt, .bytes = 16, .flags = kDescriptorNext, .next = 1});
    driver.describe(0, 1, {.address = kDataAt, .bytes = 512, .flags = data, .next = 2});
    driver.describe(0, 2, {.address = kStatusAt, .bytes = 1, .flags = kDescriptorWrite});
    driver.offer(0, 0);
    driver.notify(0);
    while (!driver.take_used(0)) {
      if (soon.passed()) return -1;
      std::this_thread::yield();
    }
    return driver.get<std::uint8_t>(kStatusAt);
  }

  OutputGate gate;
  testing::FakeIrqLine line;
  std::unique_ptr<memory::GuestMemory> memory = testing::small_memory();
  VirtioBlk* blk;  // the device's
  VirtioMmio device;
  testing::VirtioDriver driver{device, *memory};
};

class BlkLayer : public ::testing::Test {
 protected:
  BlkLayer() {
    const UniqueFd base = open_file(files_.base, O_RDWR | O_CREAT).value();
    EXPECT_EQ(::ftruncate(base.get(), kBytes), 0);
    EXPECT_TRUE(disk::make_layer(files_).ok());
  }
  testing::TempDir dir_;
  const disk::DiskFiles files_{.path = dir_.path() / "layer", .base = dir_.path() / "base"};
};

TEST_F(BlkLayer, WhatOneHostFlushedTheOtherReadsOnceItHasReadTheMapAgain) {
  Host here(files_);
  Host there(files_);  // opened before anything was written, as a destination's is
  here.device.resume();
  here.driver.start(0);
  here.driver.put_text(kDataAt, std::string(512, 'x'));
  ASSERT_EQ(here.request(kOut, 200), 0);
  ASSERT_TRUE(here.device.quiesce(soon).ok());
  ASSERT_TRUE(here.blk->flush(soon).ok());

  ASSERT_TRUE(there.blk->reread().ok());
  there.device.resume();
  there.driver.start(0);
  ASSERT_EQ(there.request(kIn, 200), 0);
  EXPECT_EQ(there.driver.text(kDataAt, 512), std::string(512, 'x'));
  ASSERT_EQ(there.request(kIn, 201), 0);
  EXPECT_EQ(there.driver.text(kDataAt, 512), std::string(512, '\0'));
}

TEST_F(BlkLayer, GoesOnAfterItsOwnersFlushAndFlushesAgain) {
  Host here(files_);
  here.device.resume();
  here.driver.start(0);
  for (int round = 0; round < 3; ++round) {
    here.driver.put_text(kDataAt, std::string(512, static_cast<char>('a' + round)));
    ASSERT_EQ(here.request(kOut, 128 * static_cast<std::uint64_t>(round)), 0);
    ASSERT_TRUE(here.device.quiesce(soon).ok());
    ASSERT_TRUE(here.blk->flush(soon).ok());
    const auto layer = disk::Layer::open(files_.path, disk::Layer::Access::kRead);
    ASSERT_TRUE(layer.ok());
    EXPECT_EQ((*layer)->map().count(disk::ClusterState::kData), static_cast<std::uint64_t>(round) + 1);
    here.device.resume();
  }
}

TEST_F(BlkLayer, AFlushHasADeadline) {
  Host here(files_);
  const Status late = here.blk->flush(Deadline::after(std::chrono::microseconds(0)));
  if (!late) {
    EXPECT_EQ(late.error().code(), Errc::kDeadlineExceeded);
  }
  EXPECT_TRUE(here.blk->flush(soon).ok()) << "one that was late is in nobody's way";
}

}  // namespace
}  // namespace fvmm::devices
