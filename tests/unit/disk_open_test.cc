// From the files that a user names to a disk, and who may use them.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "base/file.h"
#include "disk/lock.h"
#include "disk/open.h"
#include "support/temp_dir.h"

namespace fvmm::disk {
namespace {

constexpr std::uint64_t kBytes = 3 * kClusterBytes + kSectorBytes;

class DiskOpen : public ::testing::Test {
 protected:
  std::filesystem::path path(const std::string& name) const { return dir_.path() / name; }
  std::filesystem::path image(const std::string& name, std::uint64_t bytes = kBytes) const {
    const UniqueFd file = *open_file(path(name), O_RDWR | O_CREAT);
    EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
    return path(name);
  }
  /// Opening it fails like that, names the file, and says what to do.
  static void expect_refused(const DiskFiles& files, Errc code, const std::string& file, const std::string& fix) {
    const auto opened = open_disk(files);
    ASSERT_FALSE(opened.ok());
    const std::string& message = opened.error().message();
    EXPECT_EQ(opened.error().code(), code) << message;
    EXPECT_NE(message.find(file), std::string::npos) << message;
    EXPECT_NE(message.find(fix), std::string::npos) << message;
  }
  testing::TempDir dir_;
};

TEST_F(DiskOpen, OpensARawImageWritableOrNot) {
  const auto raw = open_disk({.path = image("raw"), .base = {}});
  ASSERT_TRUE(raw.ok()) << raw.error().message();
  EXPECT_TRUE(raw->is_raw() && raw->writable());
  EXPECT_EQ(raw->bytes(), kBytes);
  const auto readonly = open_disk({.path = path("raw"), .base = {}, .readonly = true});
  ASSERT_TRUE(readonly.ok());
  EXPECT_FALSE(readonly->writable());
}

TEST_F(DiskOpen, MakesALayerOnceAndOpensItOverItsBase) {
  const DiskFiles files{.path = path("top"), .base = image("base")};
  expect_refused(files, Errc::kNotFound, "top", "missing");
  ASSERT_TRUE(make_layer(files).ok());
  const auto first = open_disk(files);
  ASSERT_TRUE(first.ok()) << first.error().message();
  EXPECT_EQ(first->bytes(), kBytes);
  EXPECT_FALSE(first->is_raw());
  ASSERT_TRUE(make_layer(files).ok());
  const auto again = Layer::open(files.path, Layer::Access::kRead);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)->info().id, Layer::open(files.path, Layer::Access::kRead).value()->info().id) << "not made anew";
  EXPECT_TRUE(make_layer({.path = path("raw"), .base = {}}).ok());
  EXPECT_FALSE(std::filesystem::exists(path("raw"))) << "a raw image is not made";
}

TEST_F(DiskOpen, NamesTheFileAndTheFix) {
  image("small", kSectorBytes - 1);
  image("odd", kSectorBytes + 1);
  image("empty", 0);
  const DiskFiles layer{.path = path("layer"), .base = image("base")};
  ASSERT_TRUE(make_layer(layer).ok());
  expect_refused({.path = path("none"), .base = {}}, Errc::kNotFound, "none", "truncate -s");
  expect_refused({.path = path("small"), .base = {}}, Errc::kInvalidArgument, "small", "less than one sector");
  expect_refused({.path = path("empty"), .base = {}}, Errc::kInvalidArgument, "empty", "less than one sector");
  expect_refused({.path = path("odd"), .base = {}}, Errc::kInvalidArgument, "odd", "truncate -s %512");
  expect_refused({.path = dir_.path(), .base = {}}, Errc::kInvalidArgument, dir_.path(), "neither a file nor");
  expect_refused({.path = path("layer"), .base = {}}, Errc::kInvalidArgument, "layer", "base=FILE");
  expect_refused({.path = path("layer"), .base = path("none")}, Errc::kNotFound, "none", "name the image");
  expect_refused({.path = path("layer"), .base = path("odd")}, Errc::kInvalidArgument, "odd", "truncate -s %512");
  expect_refused({.path = path("base"), .base = path("base")}, Errc::kDataLoss, "base", "leave out base=");
  expect_refused({.path = path("layer"), .base = image("other", 2 * kBytes - kSectorBytes)}, Errc::kInvalidArgument,
                 "layer", "another base");
  const auto on_layer = make_layer({.path = path("second"), .base = path("layer")});
  ASSERT_FALSE(on_layer.ok());
  EXPECT_NE(on_layer.error().message().find("is itself a layer"), std::string::npos);
  ASSERT_TRUE(Layer::create(path("child"), {.id = Id::random(), .parent = Id::random(), .disk_bytes = kBytes}).ok());
  expect_refused({.path = path("child"), .base = path("base")}, Errc::kDataLoss, "child", "lies on layer");
}

TEST_F(DiskOpen, DoesNotWaitForTheOtherEndOfAFifo) {
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  expect_refused({.path = path("fifo"), .base = {}}, Errc::kInvalidArgument, "fifo", "neither a file nor");
}

TEST_F(DiskOpen, ALayerThatAnotherHostWroteIsSeenAfterReadingItAgain) {
  const DiskFiles files{.path = path("top"), .base = image("base")};
  ASSERT_TRUE(make_layer(files).ok());
  auto here = Layer::open(files.path, Layer::Access::kWrite);
  auto there = Layer::open(files.path, Layer::Access::kWrite);
  ASSERT_TRUE(here.ok() && there.ok());
  (*there)->map().set(1, ClusterState::kData);
  const auto block = (*there)->map().block(0);
  ASSERT_TRUE(write_all((*there)->fd(), block, Layer::map_offset(0)).ok());
  EXPECT_EQ((*here)->map().at(1), ClusterState::kAbsent);
  ASSERT_TRUE((*here)->reread().ok());
  EXPECT_EQ((*here)->map().at(1), ClusterState::kData);
}

TEST_F(DiskOpen, AFileWithAnotherLayerInItIsNotTakenForTheOldOne) {
  const DiskFiles files{.path = path("top"), .base = image("base")};
  ASSERT_TRUE(make_layer(files).ok());
  auto layer = Layer::open(files.path, Layer::Access::kWrite);
  ASSERT_TRUE(make_layer({.path = path("other"), .base = files.base}).ok());
  std::ifstream from(path("other"), std::ios::binary);
  std::string header(4096, '\0');
  from.read(header.data(), 4096);
  ASSERT_TRUE(write_all((*layer)->fd(), as_bytes(header), 0).ok());
  const Status again = (*layer)->reread();
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().code(), Errc::kFailedPrecondition);
}

class DiskLock : public DiskOpen {
 protected:
  /// An open file of its own, as another process would have it.
  FileLock opened(const std::string& name) {
    files_.push_back(open_file(path(name), O_RDWR).value());
    return FileLock::of(files_.back().get(), path(name)).value();
  }
  std::vector<UniqueFd> files_;
};

TEST_F(DiskLock, OneWriterOrAnyNumberOfReaders) {
  image("disk");
  FileLock writer = opened("disk");
  FileLock other = opened("disk");
  ASSERT_TRUE(writer.take(LockKind::kOneWriter).ok());
  ASSERT_TRUE(writer.take(LockKind::kOneWriter).ok()) << "its own is not in its way";
  for (const LockKind kind : {LockKind::kOneWriter, LockKind::kReaders}) {
    const Status taken = other.take(kind);
    ASSERT_FALSE(taken.ok());
    EXPECT_EQ(taken.error().code(), Errc::kFailedPrecondition);
    EXPECT_NE(taken.error().message().find(path("disk").string()), std::string::npos);
    EXPECT_TRUE(other.taken_by_another(kind).value());
  }
  ASSERT_TRUE(writer.let_go().ok());
  ASSERT_TRUE(other.take(LockKind::kReaders).ok());
  ASSERT_TRUE(writer.take(LockKind::kReaders).ok());
  EXPECT_FALSE(writer.take(LockKind::kOneWriter).ok());
}

TEST_F(DiskLock, EndsWithTheLastDescriptorOfItsFile) {
  image("disk");
  FileLock other = opened("disk");
  UniqueFd file = open_file(path("disk"), O_RDWR).value();
  {
    FileLock lock = FileLock::of(file.get(), path("disk")).value();
    ASSERT_TRUE(lock.take(LockKind::kOneWriter).ok());
  }
  EXPECT_FALSE(other.take(LockKind::kOneWriter).ok()) << "whoever writes has the file open yet";
  file.reset();
  EXPECT_TRUE(other.take(LockKind::kOneWriter).ok());
}

}  // namespace
}  // namespace fvmm::disk
