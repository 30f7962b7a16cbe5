#include "disk/layer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/file.h"
#include "disk/stack.h"
#include "support/temp_dir.h"

namespace fvmm::disk {
namespace {

constexpr std::uint64_t kBytes = 3 * kClusterBytes + kSectorBytes;

class DiskLayer : public ::testing::Test {
 protected:
  [[nodiscard]] std::filesystem::path path(const std::string& name) const { return dir.path() / name; }
  std::unique_ptr<Layer> made(const std::string& name, Id parent = {}, std::uint64_t bytes = kBytes) {
    auto layer = Layer::create(path(name), {.id = Id::random(), .parent = parent, .disk_bytes = bytes});
    EXPECT_TRUE(layer.ok()) << layer.error().message();
    return std::move(*layer);
  }
  Errc opened() {
    const auto layer = Layer::open(path("layer"), Layer::Access::kWrite);
    EXPECT_FALSE(layer.ok());
    return layer.ok() ? Errc::kUnknown : layer.error().code();
  }
  void spoil(std::uint64_t offset, const std::string& with) {
    const UniqueFd file = *open_file(path("layer"), O_RDWR);
    ASSERT_TRUE(write_all(file.get(), as_bytes(with), offset).ok());
  }
  testing::TempDir dir;
};

TEST_F(DiskLayer, OpensAsItWasMade) {
  const auto layer = made("layer", Id::random());
  const auto again = Layer::open(path("layer"), Layer::Access::kRead);
  ASSERT_TRUE(again.ok()) << again.error().message();
  EXPECT_EQ((*again)->info().id, layer->info().id);
  EXPECT_EQ((*again)->info().parent, layer->info().parent);
  EXPECT_EQ((*again)->info().disk_bytes, kBytes);
  EXPECT_EQ((*again)->map().count(ClusterState::kAbsent), 4u);
}

TEST_F(DiskLayer, IsNeverMadeOverAnother) {
  const auto layer = made("layer");
  const auto second = Layer::create(path("layer"), {.id = Id::random(), .parent = {}, .disk_bytes = kBytes});
  ASSERT_FALSE(second.ok());
  EXPECT_TRUE(Layer::open(path("layer"), Layer::Access::kRead).ok());
}

TEST_F(DiskLayer, TakesDisksUpToItsLimitAndNoneBeyond) {
  EXPECT_EQ(made("largest", {}, kDiskBytesMax)->info().disk_bytes, kDiskBytesMax);
  for (const std::uint64_t bytes :
       {std::uint64_t{0}, kSectorBytes - 1, kSectorBytes + 1, kDiskBytesMax + kSectorBytes}) {
    const auto layer = Layer::create(path("no"), {.id = Id::random(), .parent = {}, .disk_bytes = bytes});
    ASSERT_FALSE(layer.ok()) << bytes;
    EXPECT_EQ(layer.error().code(), Errc::kInvalidArgument);
    EXPECT_FALSE(std::filesystem::exists(path("no")));
  }
}

TEST_F(DiskLayer, RefusesWhatIsNotALayer) {
  EXPECT_EQ(opened(), Errc::kNotFound);
  ASSERT_TRUE(replace_file(path("layer"), std::string(1 << 20, 'x')).ok());
  EXPECT_EQ(opened(), Errc::kDataLoss);
}

TEST_F(DiskLayer, NamesDamage) {
  const auto layer = made("layer");
  spoil(0, "G");
  EXPECT_EQ(opened(), Errc::kDataLoss);
  spoil(0, "F");
  spoil(17, "x");  // the disk's size: the checksum knows
  EXPECT_EQ(opened(), Errc::kDataLoss);
}

TEST_F(DiskLayer, NamesAMapThatCannotBe) {
  const auto layer = made("layer");
  spoil(Layer::map_offset(0), "\x03");  // state 3
  EXPECT_EQ(opened(), Errc::kDataLoss);
  spoil(Layer::map_offset(0), std::string(1, '\0'));
  spoil(Layer::map_offset(0) + 1, "\x01");  // cluster 4 of a disk with 0 to 3
  EXPECT_EQ(opened(), Errc::kDataLoss);
}

TEST_F(DiskLayer, NamesAFileThatWasCut) {
  const auto layer = made("layer");
  ASSERT_EQ(::truncate(path("layer").c_str(), static_cast<off_t>(layer->data_offset(3))), 0);
  EXPECT_EQ(opened(), Errc::kDataLoss);
  ASSERT_EQ(::truncate(path("layer").c_str(), 10), 0);
  EXPECT_EQ(opened(), Errc::kDataLoss);
}

TEST_F(DiskLayer, StacksOnlyOnItsParent) {
  auto bottom = made("bottom");
  const Id below = bottom->info().id;
  std::vector<std::shared_ptr<const Layer>> lower = {std::move(bottom)};
  EXPECT_TRUE(Stack::layered(made("right", below), lower, {}).ok());
  EXPECT_FALSE(Stack::layered(made("wrong", Id::random()), lower, {}).ok());
  EXPECT_FALSE(Stack::layered(made("none"), lower, {}).ok());
  EXPECT_FALSE(Stack::layered(made("alone", below), {}, {}).ok());
  EXPECT_FALSE(Stack::layered(made("size", below, 2 * kBytes), lower, {}).ok());
}

TEST_F(DiskLayer, StacksUpToItsLimitAndNoHigher) {
  std::vector<std::shared_ptr<const Layer>> lower;
  Id below;
  for (std::size_t i = 0; i < kLayersMax; ++i) {
    auto layer = made("layer" + std::to_string(i), below);
    below = layer->info().id;
    if (i == kLayersMax - 1) {
      EXPECT_TRUE(Stack::layered(made("last", lower.front()->info().id), lower, {}).ok());
    }
    lower.insert(lower.begin(), std::move(layer));
  }
  const auto over = Stack::layered(made("over", below), lower, {});
  ASSERT_FALSE(over.ok());
  EXPECT_EQ(over.error().code(), Errc::kResourceExhausted);
}

TEST_F(DiskLayer, RefusesABaseLargerThanTheDisk) {
  const UniqueFd file = *open_file(path("base"), O_RDWR | O_CREAT);
  ASSERT_EQ(::ftruncate(file.get(), static_cast<off_t>(kBytes + kSectorBytes)), 0);
  const auto stack = Stack::layered(made("top"), {}, *open_raw(path("base"), false));
  ASSERT_FALSE(stack.ok());
  EXPECT_EQ(stack.error().code(), Errc::kInvalidArgument);
}

TEST(DiskRaw, RefusesWhatIsNeitherFileNorBlockDevice) {
  EXPECT_FALSE(open_raw("/dev/zero", false).ok());
  EXPECT_FALSE(open_raw("/nonexistent", false).ok());
  testing::TempDir dir;
  ASSERT_TRUE(replace_file(dir.path() / "small", std::string(kSectorBytes - 1, 'x')).ok());
  EXPECT_FALSE(open_raw(dir.path() / "small", false).ok());
  ASSERT_TRUE(replace_file(dir.path() / "odd", std::string(kSectorBytes + 1, 'x')).ok());
  const auto odd = open_raw(dir.path() / "odd", false);
  ASSERT_TRUE(odd.ok());
  EXPECT_EQ(odd->bytes, kSectorBytes);
}

}  // namespace
}  // namespace fvmm::disk
