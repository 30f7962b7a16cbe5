// What a configuration may ask for in disks, where a VM with disks may go, and who holds their files.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/file.h"
#include "disk/merge.h"
#include "support/temp_dir.h"
#include "vmm/disk_config.h"
#include "vmm/disks.h"
#include "vmm/virtio_devices.h"
#include "vmm/virtio_slots.h"

namespace fvmm::vmm {
namespace {

v1::DiskConfig disk(const std::string& path, const std::string& base = "") {
  v1::DiskConfig out;
  out.set_path(path);
  out.set_base(base);
  return out;
}

v1::VmConfig with(const std::vector<v1::DiskConfig>& disks) {
  v1::VmConfig config;
  config.set_name("web");
  for (const auto& one : disks) *config.add_disks() = one;
  return config;
}

void expect_refused(const Status& status, Errc code, const std::string& text) {
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code(), code);
  EXPECT_NE(status.error().message().find(text), std::string::npos) << status.error().message();
}

TEST(DiskConfig, SeveralDisksAreTakenAndABaseMayLieBelowMany) {
  EXPECT_TRUE(check_virtio(with({})).ok());
  EXPECT_TRUE(check_virtio(with({disk("/a"), disk("/b", "/base"), disk("/c", "/base")})).ok());
  v1::DiskConfig readonly = disk("/base");
  readonly.set_readonly(true);
  EXPECT_TRUE(check_virtio(with({disk("/b", "/base"), readonly})).ok());
}

TEST(DiskConfig, WhatCannotBeIsRefusedWithTheFix) {
  constexpr auto kCode = Errc::kInvalidArgument;
  expect_refused(check_disks(with({disk("a")})), kCode, "absolute path");
  expect_refused(check_disks(with({disk("")})), kCode, "absolute path");
  expect_refused(check_disks(with({disk("/a", "base")})), kCode, "absolute path");
  expect_refused(check_disks(with({disk("/a"), disk("/a", "/base")})), kCode, "two disks on one file, /a");
  expect_refused(check_disks(with({disk("/a"), disk("/b", "/a")})), kCode, "/a is written to by one disk");
  v1::DiskConfig both = disk("/a", "/base");
  both.set_readonly(true);
  expect_refused(check_disks(with({both})), kCode, "name the base itself");
}

TEST(DiskConfig, AnIdHasTwentyCharactersAndOneOwner) {
  v1::DiskConfig one = disk("/a");
  v1::DiskConfig two = disk("/b");
  one.set_id(std::string(kDiskIdBytesMax, 'x'));
  EXPECT_TRUE(check_disks(with({one})).ok());
  two.set_id(one.id());
  expect_refused(check_disks(with({one, two})), Errc::kInvalidArgument, "two disks with the id");
  one.set_id(std::string(kDiskIdBytesMax + 1, 'x'));
  expect_refused(check_disks(with({one})), Errc::kInvalidArgument, "at most 20");
  one.set_id("a b");
  expect_refused(check_disks(with({one})), Errc::kInvalidArgument, "is no disk id");
}

TEST(DiskConfig, DisksCountAsDevices) {
  v1::VmConfig config;
  config.add_virtio()->mutable_rng();
  for (unsigned i = 1; i < kVirtioSlotsMax; ++i) *config.add_disks() = disk("/disk" + std::to_string(i));
  EXPECT_TRUE(check_virtio(config).ok());
  *config.add_disks() = disk("/one-more");
  expect_refused(check_virtio(config), Errc::kInvalidArgument, "at most " + std::to_string(kVirtioSlotsMax));
}

TEST(DiskConfig, OnlyASharedDiskTravelsOnlyALayerIsCutAndOnlyAReadonlyOneIsReplicated) {
  v1::DiskConfig one = disk("/a");
  expect_refused(check_disks_travel(with({one})), Errc::kFailedPrecondition, "shared");
  one.set_shared(true);
  EXPECT_TRUE(check_disks_travel(with({one})).ok());
  expect_refused(check_disks_readonly(with({one})), Errc::kFailedPrecondition, "a replica");
  expect_refused(check_disks_cut(with({one})), Errc::kFailedPrecondition, "base=/a");
  EXPECT_TRUE(check_disks_cut(with({disk("/a", "/base")})).ok());
  one.set_readonly(true);
  EXPECT_TRUE(check_disks_readonly(with({one})).ok());
  EXPECT_TRUE(check_disks_cut(with({one})).ok());
  EXPECT_TRUE(check_disks_travel(with({})).ok());
}

class DisksOfAVm : public ::testing::Test {
 protected:
  std::string image(const std::string& name) {
    const UniqueFd file = open_file(dir_.path() / name, O_RDWR | O_CREAT).value();
    EXPECT_EQ(::ftruncate(file.get(), 1 << 20), 0);
    return dir_.path() / name;
  }
  /// One VM's: its devices live as long as the test.
  void attach(Disks& disks, const v1::DiskConfig& config) {
    auto device = disks.attach(config, gate_);
    ASSERT_TRUE(device.ok()) << device.error().message();
    devices_.push_back(std::move(*device));
  }
  testing::TempDir dir_;
  devices::OutputGate gate_;
  std::vector<std::unique_ptr<devices::VirtioDevice>> devices_;
};

TEST_F(DisksOfAVm, MoveFromOneHolderToTheNext) {
  Disks here, there;
  attach(here, disk(image("disk")));
  attach(there, disk(image("disk")));
  ASSERT_TRUE(here.take().ok());
  ASSERT_TRUE(here.take().ok()) << "held already";
  expect_refused(there.take(), Errc::kFailedPrecondition, "disk");
  EXPECT_TRUE(here.flush(Deadline::after(std::chrono::seconds(30))).ok());
  here.let_go();
  ASSERT_TRUE(there.take().ok());
  expect_refused(here.take(), Errc::kFailedPrecondition, "disk");
  there.let_go();
  EXPECT_TRUE(here.take().ok()) << "it comes back";
}

TEST_F(DisksOfAVm, AreTakenAllOrNone) {
  Disks here, other;
  attach(other, disk(image("second")));
  attach(here, disk(image("first")));
  attach(here, disk(image("second")));
  ASSERT_TRUE(other.take().ok());
  expect_refused(here.take(), Errc::kFailedPrecondition, "second");
  Disks third;
  attach(third, disk(image("first")));
  EXPECT_TRUE(third.take().ok()) << "the first one was let go";
}

TEST_F(DisksOfAVm, ManyVmsLieOnOneBaseThatNobodyMayWrite) {
  const std::string base = image("base");
  Disks one, two, writer;
  for (Disks* disks : {&one, &two}) {
    const v1::DiskConfig config = disk(dir_.path() / (disks == &one ? "layer1" : "layer2"), base);
    ASSERT_TRUE(disk::make_layer(files_of(config)).ok());
    attach(*disks, config);
    ASSERT_TRUE(disks->take().ok());
  }
  attach(writer, disk(base));
  expect_refused(writer.take(), Errc::kFailedPrecondition, "base");
}

TEST_F(DisksOfAVm, AreCutTogetherAndGoOnInNextLayers) {
  const Deadline soon = Deadline::after(std::chrono::seconds(30));
  const v1::DiskConfig layer = disk(dir_.path() / "layer", image("base"));
  v1::DiskConfig readonly = disk(image("readonly"));
  readonly.set_readonly(true);
  ASSERT_TRUE(disk::make_layer(files_of(layer)).ok());
  Disks disks;
  attach(disks, readonly);
  attach(disks, layer);
  ASSERT_TRUE(disks.take().ok());
  EXPECT_TRUE(disks.cut(soon).ok()) << "nothing was prepared";
  EXPECT_TRUE(disks.seal_cut()->front().layers.empty());
  for (std::size_t layers = 1; layers <= 2; ++layers) {
    ASSERT_TRUE(disks.prepare_cut().ok());
    ASSERT_TRUE(disks.cut(soon).ok());
    const auto cuts = disks.seal_cut();
    ASSERT_TRUE(cuts.ok()) << cuts.error().message();
    ASSERT_EQ(cuts->size(), 1U);
    EXPECT_EQ(cuts->front().disk, 1U);
    ASSERT_EQ(cuts->front().layers.size(), layers);
    const auto newest = disk::Layer::open(cuts->front().layers.front().file, disk::Layer::Access::kRead);
    EXPECT_TRUE(newest.ok() && (*newest)->verify().ok());
  }
  ASSERT_TRUE(disks.prepare_cut().ok());
  disks.drop_cut();
  Disks second;
  attach(second, layer);
  expect_refused(second.take(), Errc::kFailedPrecondition, "layer");
}

TEST_F(DisksOfAVm, ManyLayersBecomeOne) {
  const Deadline soon = Deadline::after(std::chrono::minutes(5));
  const v1::DiskConfig layer = disk(dir_.path() / "layer", image("base"));
  ASSERT_TRUE(disk::make_layer(files_of(layer)).ok());
  Disks disks;
  attach(disks, layer);
  ASSERT_TRUE(disks.take().ok());
  const auto names = [&] {
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(dir_.path() / "layer.layers"), {}));
  };
  for (std::size_t i = 1; i <= disk::kMergedAt; ++i) {
    ASSERT_TRUE(disks.prepare_cut().ok() && disks.cut(soon).ok() && disks.seal_cut().ok());
    EXPECT_EQ(names(), i);
  }
  ASSERT_TRUE(disks.prepare_cut().ok());
  EXPECT_EQ(names(), disk::kMergedAt + 2) << "the merged one, and what is about to be cut";
  disks.drop_cut();
  EXPECT_EQ(names(), disk::kMergedAt) << "taken back";
  ASSERT_TRUE(disks.prepare_cut().ok() && disks.cut(soon).ok());
  const auto cuts = disks.seal_cut();
  ASSERT_TRUE(cuts.ok()) << cuts.error().message();
  EXPECT_EQ(cuts->front().layers.size(), 2U);
  EXPECT_EQ(names(), 2U);
  EXPECT_TRUE(disk::open_disk(files_of(layer)).ok());
}

TEST_F(DisksOfAVm, OneThatIsRawKeepsAllFromBeingCut) {
  const v1::DiskConfig layer = disk(dir_.path() / "layer", image("base"));
  ASSERT_TRUE(disk::make_layer(files_of(layer)).ok());
  Disks disks;
  attach(disks, layer);
  attach(disks, disk(image("raw")));
  ASSERT_TRUE(disks.take().ok());
  expect_refused(disks.prepare_cut(), Errc::kFailedPrecondition, "is raw");
  EXPECT_FALSE(std::filesystem::exists(dir_.path() / "layer.layers")) << "taken back";
}

}  // namespace
}  // namespace fvmm::vmm
