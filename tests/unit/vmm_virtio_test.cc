// What a configuration may ask for in virtio devices.
#include <gtest/gtest.h>

#include "support/fake_devices.h"
#include "vmm/virtio_devices.h"
#include "vmm/virtio_slots.h"

namespace fvmm::vmm {
namespace {

TEST(VirtioConfig, OneOfEachKindIsTaken) {
  v1::VmConfig config;
  EXPECT_TRUE(check_virtio(config).ok());
  config.add_virtio()->mutable_rng();
  config.add_virtio()->mutable_console();
  config.add_virtio()->mutable_balloon();
  EXPECT_TRUE(check_virtio(config).ok());
}

TEST(VirtioConfig, ASecondOfAKindOfWhichThereIsOneIsRefused) {
  using Kind = v1::VirtioDevice::KindCase;
  for (const Kind kind : {Kind::kRng, Kind::kConsole, Kind::kBalloon}) {
    v1::VmConfig config;
    for (int i = 0; i < 2; ++i) {
      v1::VirtioDevice& added = *config.add_virtio();
      if (kind == Kind::kRng) added.mutable_rng();
      if (kind == Kind::kConsole) added.mutable_console();
      if (kind == Kind::kBalloon) added.mutable_balloon();
    }
    const Status status = check_virtio(config);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code(), Errc::kInvalidArgument);
  }
}

TEST(VirtioConfig, ADeviceOfANewerBuildIsRefused) {
  v1::VmConfig config;
  ASSERT_TRUE(config.add_virtio()->ParseFromString(std::string("\xfa\x07\x00", 3)));  // field 127, of no bytes
  const Status status = check_virtio(config);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message().find("does not know"), std::string::npos);
  EXPECT_FALSE(make_virtio(config.virtio(0), {}).ok());
}

TEST(VirtioConfig, MoreDevicesThanSlotsAreRefused) {
  v1::VmConfig config;
  for (unsigned i = 0; i < kVirtioSlotsMax + 1; ++i) config.add_virtio();
  const Status status = check_virtio(config);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message().find("at most 18"), std::string::npos) << status.error().message();
}

TEST(VirtioConfig, EachKindMakesItsDevice) {
  testing::FakeSink sink;
  v1::VirtioDevice config;
  config.mutable_rng();
  EXPECT_EQ(make_virtio(config, {}).value()->type(), 4U);
  config.mutable_console();
  EXPECT_EQ(make_virtio(config, {.console = &sink}).value()->type(), 3U);
  config.mutable_balloon();
  EXPECT_EQ(make_virtio(config, {}).value()->type(), 5U);
}

}  // namespace
}  // namespace fvmm::vmm
