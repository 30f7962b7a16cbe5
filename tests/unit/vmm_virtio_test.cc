// What a configuration may ask for in virtio devices.
#include <gtest/gtest.h>

#include "support/fake_devices.h"
#include "support/fake_vsock_host.h"
#include "support/temp_dir.h"
#include "vmm/virtio_devices.h"
#include "vmm/virtio_slots.h"
#include "vmm/vsock_config.h"

namespace fvmm::vmm {
namespace {

TEST(VirtioConfig, OneOfEachKindIsTaken) {
  v1::VmConfig config;
  EXPECT_TRUE(check_virtio(config).ok());
  config.add_virtio()->mutable_rng();
  config.add_virtio()->mutable_console();
  config.add_virtio()->mutable_balloon();
  config.add_virtio()->mutable_vsock();
  EXPECT_TRUE(check_virtio(config).ok());
}

TEST(VirtioConfig, ASecondOfAKindOfWhichThereIsOneIsRefused) {
  using Kind = v1::VirtioDevice::KindCase;
  for (const Kind kind : {Kind::kRng, Kind::kConsole, Kind::kBalloon, Kind::kVsock}) {
    v1::VmConfig config;
    for (int i = 0; i < 2; ++i) {
      v1::VirtioDevice& added = *config.add_virtio();
      if (kind == Kind::kRng) added.mutable_rng();
      if (kind == Kind::kConsole) added.mutable_console();
      if (kind == Kind::kBalloon) added.mutable_balloon();
      if (kind == Kind::kVsock) added.mutable_vsock();
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
  config.mutable_vsock();
  EXPECT_EQ(make_virtio(config, {}).error().code(), Errc::kFailedPrecondition) << "without its socket";
  devices::OutputGate gate;
  auto host = std::make_unique<testing::FakeVsockHost>(std::make_shared<testing::Programs>());
  EXPECT_EQ(make_virtio(config, {.vsock = std::move(host), .gate = &gate}).value()->type(), 19U);
}

TEST(VirtioConfig, AVsockHasAnAddressAndAPathThatCanBe) {
  v1::VmConfig config;
  v1::VsockConfig& vsock = *config.add_virtio()->mutable_vsock();
  EXPECT_EQ(vsock_cid(vsock), 3U);
  for (const std::uint32_t cid : {0U, 3U, 4U, 0xffff'fffeU}) {
    vsock.set_cid(cid);
    EXPECT_TRUE(check_virtio(config).ok()) << cid;
  }
  for (const std::uint32_t cid : {1U, 2U, 0xffff'ffffU}) {
    vsock.set_cid(cid);
    EXPECT_EQ(check_virtio(config).error().code(), Errc::kInvalidArgument) << cid;
  }
  vsock.set_cid(0);
  vsock.set_path("/" + std::string(devices::kVsockPathBytesMax - 1, 'p'));
  EXPECT_TRUE(check_virtio(config).ok());
  for (const std::string& path : {std::string("vsock"), "/" + std::string(devices::kVsockPathBytesMax, 'p')}) {
    vsock.set_path(path);
    EXPECT_EQ(check_virtio(config).error().code(), Errc::kInvalidArgument) << path;
  }
}

TEST(VirtioConfig, AVsockListensInItsVmsDirectoryUnlessToldOtherwise) {
  v1::VmConfig config;
  EXPECT_EQ(vsock_of(config), nullptr);
  config.add_virtio()->mutable_rng();
  v1::VsockConfig& vsock = *config.add_virtio()->mutable_vsock();
  EXPECT_EQ(vsock_of(config), &vsock);
  EXPECT_EQ(vsock_path(vsock, "/vms/1"), "/vms/1/vsock.sock");
  vsock.set_path("/run/web");
  EXPECT_EQ(vsock_path(vsock, "/vms/1"), "/run/web");
  forget_vsock_path(config);
  EXPECT_EQ(vsock_path(vsock, "/vms/2"), "/vms/2/vsock.sock") << "as a clone";
}

TEST(VirtioConfig, WhatADeadWorkerLeftIsRemoved) {
  const testing::TempDir directory;
  v1::VmConfig config;
  v1::VsockConfig& vsock = *config.add_virtio()->mutable_vsock();
  const auto path = directory.path() / kVsockSocketFile;
  auto host = open_vsock(vsock, directory.path()).value();
  ASSERT_TRUE(host->listen().ok());
  remove_dead_vsock(config, directory.path());
  EXPECT_TRUE(std::filesystem::exists(path)) << "it is alive";
  std::filesystem::rename(path, directory.path() / "aside");
  host.reset();
  std::filesystem::rename(directory.path() / "aside", path);
  remove_dead_vsock(config, directory.path());
  EXPECT_FALSE(std::filesystem::exists(path));
  remove_dead_vsock(v1::VmConfig(), directory.path());
}

}  // namespace
}  // namespace fvmm::vmm
