// A disk that goes on in a new layer, and layers that are sealed and shared.
#include "disk/next_layer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "disk/below.h"
#include "disk/engine.h"
#include "disk/merge.h"
#include "disk/open.h"
#include "support/disk_model.h"
#include "support/temp_dir.h"

namespace fvmm::disk {
namespace {

using Kind = Request::Kind;
namespace fs = std::filesystem;

constexpr std::uint64_t kBytes = 4 * kClusterBytes + kSectorBytes;
const Deadline kSoon = Deadline::after(std::chrono::minutes(5));

void expect_refused(const Error& error, Errc code, const std::string& text) {
  EXPECT_EQ(error.code(), code) << error.message();
  EXPECT_NE(error.message().find(text), std::string::npos) << error.message();
}

/// A disk over a base of zeros, at work.
class NextLayers : public ::testing::Test {
 protected:
  void SetUp() override {
    const UniqueFd base = *open_file(files_.base, O_RDWR | O_CREAT);
    ASSERT_EQ(::ftruncate(base.get(), kBytes), 0);
    ASSERT_TRUE(make_layer(files_).ok());
    start();
  }
  void start() {
    engine_.reset();
    lock_.reset();
    auto stack = open_disk(files_);
    ASSERT_TRUE(stack.ok()) << stack.error().message();
    auto lock = FileLock::of(stack->write_fd(), files_.path);
    ASSERT_TRUE(lock.ok() && lock->take(LockKind::kOneWriter).ok());
    lock_ = std::make_unique<FileLock>(std::move(*lock));
    engine_ = std::make_unique<Engine>(std::move(*stack), *make_ring_io(), [](std::uint64_t, const Status& status) {
      EXPECT_TRUE(status.ok()) << status.error().message();
    });
  }
  void run(Request request) {
    engine_->start(std::move(request));
    ASSERT_TRUE(engine_->drain(kSoon).ok());
  }
  void write(std::uint64_t sector, std::uint64_t version) {
    std::vector<std::byte> bytes(kSectorBytes);
    testing::stamp(bytes.data(), version);
    run({.kind = Kind::kWrite,
         .offset = sector * kSectorBytes,
         .bytes = kSectorBytes,
         .data = {{bytes.data(), bytes.size()}},
         .token = 1});
  }
  std::uint64_t read(std::uint64_t sector) {
    std::vector<std::byte> bytes(kSectorBytes);
    run({.kind = Kind::kRead,
         .offset = sector * kSectorBytes,
         .bytes = kSectorBytes,
         .data = {{bytes.data(), bytes.size()}},
         .token = 1});
    return testing::version_of(bytes.data());
  }
  void flush() { run({.kind = Kind::kFlush, .offset = 0, .bytes = 0, .data = {}, .token = 1}); }
  Result<NextLayer> prepare() {
    return NextLayer::prepare(files_.path, engine_->stack().write_fd(), engine_->stack().top()->info());
  }
  /// The instant: what was written lies below, sealed.
  std::shared_ptr<Layer> cut() {
    auto next = prepare();
    EXPECT_TRUE(next.ok()) << next.error().message();
    flush();
    NextLayer::Taken taken = next->take();
    lock_ = std::make_unique<FileLock>(std::move(taken.lock));
    auto old = engine_->put_over(std::move(taken.layer));
    EXPECT_TRUE(old.ok());
    (*old)->moved(taken.old_path);
    EXPECT_TRUE((*old)->seal().ok());
    return *old;
  }
  [[nodiscard]] fs::path layers() const { return files_.path.string() + ".layers"; }

  testing::TempDir dir_;
  DiskFiles files_{.path = dir_.path() / "disk", .base = dir_.path() / "base"};
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<FileLock> lock_;
};

TEST_F(NextLayers, WhatIsWrittenAfterTheCutLiesInTheNextLayer) {
  write(0, 11);
  write(200, 12);
  const auto old = cut();
  const fs::path file = old->path();
  const std::string sealed = *read_file(file, 1 << 24);
  EXPECT_EQ(read(0), 11U);
  write(0, 21);
  write(1, 22);
  run({.kind = Kind::kWriteZeroes, .offset = 128 * kSectorBytes, .bytes = kClusterBytes, .data = {}, .token = 1});
  flush();
  EXPECT_EQ(*read_file(file, 1 << 24), sealed) << "a sealed layer never changes";
  EXPECT_TRUE(old->verify().ok());
  start();
  EXPECT_EQ(read(0), 21U);
  EXPECT_EQ(read(1), 22U);
  EXPECT_EQ(read(200), 0U) << "zeroed in the next layer";
  EXPECT_EQ(engine_->stack().lower().size(), 1U);
}

TEST_F(NextLayers, NotTakenNothingHasHappened) {
  write(0, 11);
  const Id top = engine_->stack().top()->info().id;
  {
    const auto next = prepare();
    ASSERT_TRUE(next.ok()) << next.error().message();
    EXPECT_NE((*Layer::open(files_.path, Layer::Access::kRead))->info().id, top);
    write(1, 12);  // the VM runs on
  }
  EXPECT_FALSE(fs::exists(layers()));
  flush();
  start();
  EXPECT_EQ(engine_->stack().top()->info().id, top);
  EXPECT_EQ(read(0), 11U);
  EXPECT_EQ(read(1), 12U);
}

// Killed between prepare() and the cut: what has the disk's name is an empty layer over what was written.
TEST_F(NextLayers, KilledBeforeTheCutTheDiskIsWhole) {
  write(0, 11);
  auto next = prepare();
  ASSERT_TRUE(next.ok());
  write(1, 12);
  flush();
  fs::copy(files_.path, dir_.path() / "copy");  // as a host finds it after the power came back
  fs::copy(layers(), dir_.path() / "copy.layers");
  files_.path = dir_.path() / "copy";
  start();
  EXPECT_EQ(engine_->stack().lower().size(), 1U);
  EXPECT_EQ(read(0), 11U);
  EXPECT_EQ(read(1), 12U);
  write(0, 21);
  EXPECT_EQ(read(0), 21U);
}

TEST_F(NextLayers, TheNextLayerIsLockedBeforeItHasTheDisksName) {
  const auto next = prepare();
  ASSERT_TRUE(next.ok());
  const UniqueFd file = *open_file(files_.path, O_RDWR);
  EXPECT_TRUE(*FileLock::of(file.get(), files_.path)->taken_by_another(LockKind::kOneWriter));
}

TEST_F(NextLayers, AFileThatWasMovedAwayIsNotCut) {
  fs::rename(files_.path, dir_.path() / "elsewhere");
  const auto next = prepare();
  ASSERT_FALSE(next.ok());
  expect_refused(next.error(), Errc::kFailedPrecondition, "moved or replaced");
}

TEST_F(NextLayers, ADiskUnderASymbolicLinkKeepsItsLayersWhereItIs) {
  fs::create_directory(dir_.path() / "store");
  engine_.reset();
  fs::rename(files_.path, dir_.path() / "store" / "disk");
  fs::create_symlink(dir_.path() / "store" / "disk", files_.path);
  start();
  write(0, 11);
  cut();
  EXPECT_TRUE(fs::is_symlink(files_.path));
  EXPECT_TRUE(fs::exists(dir_.path() / "store" / "disk.layers"));
  start();
  EXPECT_EQ(read(0), 11U);
}

TEST_F(NextLayers, ClonesLieOnWhatIsSealedAndShareIt) {
  write(0, 11);
  const std::vector<fs::path> one = {cut()->path()};
  write(0, 21);
  const std::vector<fs::path> two = {cut()->path(), one.front()};
  write(0, 31);
  for (const auto& [name, lower, version] : {std::tuple("a", one, 11U), std::tuple("b", two, 21U)}) {
    const DiskFiles clone{.path = dir_.path() / name, .base = files_.base};
    ASSERT_TRUE(make_over(clone.path, lower).ok());
    files_ = clone;
    start();
    EXPECT_EQ(read(0), version);
    write(0, 41);
    flush();
    start();
    EXPECT_EQ(read(0), 41U);
    EXPECT_FALSE(make_over(clone.path, lower).ok()) << "never over a disk that is there";
    struct stat status {};
    ASSERT_EQ(::stat(one.front().c_str(), &status), 0);
    EXPECT_GE(status.st_nlink, 2U) << "shared, not copied";
  }
}

TEST_F(NextLayers, MergedLayersShowWhatTheyShowed) {
  const auto zero = [this](std::uint64_t cluster) {
    run({.kind = Kind::kWriteZeroes,
         .offset = cluster * kClusterBytes,
         .bytes = kClusterBytes,
         .data = {},
         .token = 1});
  };
  constexpr std::uint64_t kSectors = kClusterBytes / kSectorBytes;
  write(0, 11);
  write(kSectors, 12);
  write(2 * kSectors, 13);
  cut();
  write(0, 21);
  zero(1);
  cut();
  zero(2);
  write(2 * kSectors + 1, 31);  // over the zeros
  cut();
  write(1, 41);  // stays above
  const auto merged = merge_layers(layers(), engine_->stack().lower());
  ASSERT_TRUE(merged.ok()) << merged.error().message();
  EXPECT_TRUE((*merged)->verify().ok());
  EXPECT_EQ((*merged)->map().count(ClusterState::kData), 2U);
  EXPECT_EQ((*merged)->map().count(ClusterState::kZero), 1U);
  const auto expect_shown = [this] {
    EXPECT_EQ(read(0), 21U);
    EXPECT_EQ(read(1), 41U);
    EXPECT_EQ(read(kSectors), 0U);
    EXPECT_EQ(read(2 * kSectors), 0U);
    EXPECT_EQ(read(2 * kSectors + 1), 31U);
    EXPECT_EQ(read(4 * kSectors), 0U) << "the base's";
  };
  expect_shown();
  ASSERT_TRUE(engine_->lie_on({*merged}).ok());
  expect_shown();
  flush();
  start();
  EXPECT_EQ(engine_->stack().lower().size(), 1U);
  expect_shown();
}

TEST_F(NextLayers, AMissingLayerIsNamed) {
  cut();
  engine_.reset();
  fs::remove_all(layers());
  const auto opened = open_disk(files_);
  ASSERT_FALSE(opened.ok());
  expect_refused(opened.error(), Errc::kDataLoss, "copy that directory with the disk");
}

TEST_F(NextLayers, AStackHasALimit) {
  for (std::size_t i = 1; i < kLayersMax; ++i) cut();
  auto next = prepare();
  ASSERT_TRUE(next.ok());
  flush();
  const auto over = engine_->put_over(next->take().layer);
  ASSERT_FALSE(over.ok());
  expect_refused(over.error(), Errc::kResourceExhausted, "65 layers");
}

TEST_F(NextLayers, ASealedLayerIsNotWrittenToAndItsDamageIsFound) {
  write(0, 11);
  const fs::path file = cut()->path();
  const auto to_write = Layer::open(file, Layer::Access::kWrite);
  ASSERT_FALSE(to_write.ok());
  expect_refused(to_write.error(), Errc::kFailedPrecondition, "is sealed");
  const auto layer = Layer::open(file, Layer::Access::kRead).value();
  EXPECT_TRUE(layer->sealed() && layer->verify().ok());
  const auto spoil = [&](std::uint64_t offset) {
    const UniqueFd fd = *open_file(file, O_RDWR);
    std::byte byte{};
    ASSERT_TRUE(read_all(fd.get(), std::span(&byte, 1), offset).ok());
    byte ^= std::byte{1};
    ASSERT_TRUE(write_all(fd.get(), std::span(&byte, 1), offset).ok());
  };
  spoil(layer->data_offset(0) + 77);
  expect_refused(layer->verify().error(), Errc::kDataLoss, "not what was sealed");
  spoil(layer->data_offset(0) + 77);
  EXPECT_TRUE(layer->verify().ok());
  for (const std::uint64_t offset : {70, 80}) {  // of the seal behind the header
    spoil(offset);
    const auto damaged = Layer::open(file, Layer::Access::kRead);
    ASSERT_FALSE(damaged.ok());
    expect_refused(damaged.error(), Errc::kDataLoss, "seal");
    spoil(offset);
  }
}

}  // namespace
}  // namespace fvmm::disk
