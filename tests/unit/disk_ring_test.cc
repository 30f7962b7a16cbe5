// The engine over io_uring and real files.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "base/file.h"
#include "disk/engine.h"
#include "support/temp_dir.h"

namespace fvmm::disk {
namespace {

using Kind = Request::Kind;
constexpr auto kSoon = std::chrono::seconds(20);

class DiskRing : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> over(Stack stack) {
    auto io = make_ring_io();
    if (!io.ok()) return nullptr;
    return std::make_unique<Engine>(
        std::move(stack), std::move(*io),
        [this](std::uint64_t token, const Status& status) { ended[token] = status ? "ok" : status.error().message(); });
  }
  std::string one(Engine& engine, Request request) {
    request.token = ++tokens;
    engine.start(std::move(request));
    EXPECT_TRUE(engine.drain(Deadline::after(kSoon)).ok());
    return ended.at(tokens);
  }
  static Request of(Kind kind, std::uint64_t offset, std::vector<std::byte>& bytes) {
    return {.kind = kind, .offset = offset, .bytes = bytes.size(), .data = {{bytes.data(), bytes.size()}}, .token = 0};
  }
  static Request range(Kind kind, std::uint64_t offset, std::uint64_t bytes) {
    return {.kind = kind, .offset = offset, .bytes = bytes, .data = {}, .token = 0};
  }
  [[nodiscard]] std::filesystem::path raw(std::uint64_t bytes) const {
    EXPECT_TRUE(replace_file(dir.path() / "raw", std::string(bytes, 'r')).ok());
    return dir.path() / "raw";
  }

  testing::TempDir dir;
  std::map<std::uint64_t, std::string> ended;
  std::uint64_t tokens = 0;
};

TEST_F(DiskRing, WritesAndReadsARawImage) {
  const auto engine = over(Stack::raw(*open_raw(raw(4 * kClusterBytes), true), true));
  if (!engine) GTEST_SKIP() << "io_uring is forbidden here";
  std::vector<std::byte> out(3 * kSectorBytes, std::byte{7});
  std::vector<std::byte> in(out.size());
  EXPECT_EQ(one(*engine, of(Kind::kWrite, kClusterBytes - kSectorBytes, out)), "ok");
  EXPECT_EQ(one(*engine, range(Kind::kFlush, 0, 0)), "ok");
  EXPECT_EQ(one(*engine, of(Kind::kRead, kClusterBytes - kSectorBytes, in)), "ok");
  EXPECT_EQ(in, out);
  EXPECT_EQ(one(*engine, range(Kind::kWriteZeroes, kClusterBytes, kSectorBytes)), "ok");
  EXPECT_EQ(one(*engine, of(Kind::kRead, kClusterBytes - kSectorBytes, in)), "ok");
  EXPECT_EQ(in[kSectorBytes - 1], std::byte{7});
  EXPECT_EQ(in[kSectorBytes], std::byte{0});
  EXPECT_EQ(in[2 * kSectorBytes], std::byte{7});
  EXPECT_EQ(engine->take_dirty(), (std::vector<ClusterIndex>{0, 1}));
  EXPECT_TRUE(engine->take_dirty().empty());
}

TEST_F(DiskRing, KeepsTheBaseAsItWasUnderALayer) {
  const auto base = raw(2 * kClusterBytes);
  auto top = *Layer::create(dir.path() / "top", {.id = Id::random(), .parent = {}, .disk_bytes = 4 * kClusterBytes});
  auto engine = over(*Stack::layered(std::move(top), {}, *open_raw(base, false)));
  if (!engine) GTEST_SKIP() << "io_uring is forbidden here";
  std::vector<std::byte> out(kSectorBytes, std::byte{7});
  EXPECT_EQ(one(*engine, of(Kind::kWrite, kClusterBytes, out)), "ok");
  EXPECT_EQ(one(*engine, range(Kind::kFlush, 0, 0)), "ok");
  EXPECT_EQ(engine->counters().clusters_copied, 1u);
  engine = over(*Stack::layered(*Layer::open(dir.path() / "top", Layer::Access::kWrite), {}, *open_raw(base, false)));
  std::vector<std::byte> in(4 * kClusterBytes);
  EXPECT_EQ(one(*engine, of(Kind::kRead, 0, in)), "ok");
  EXPECT_EQ(in[kClusterBytes - 1], std::byte{'r'});
  EXPECT_EQ(in[kClusterBytes], std::byte{7});
  EXPECT_EQ(in[kClusterBytes + kSectorBytes], std::byte{'r'});
  EXPECT_EQ(in[2 * kClusterBytes], std::byte{0});
  EXPECT_EQ(*read_file(base, 1 << 20), std::string(2 * kClusterBytes, 'r'));
}

TEST_F(DiskRing, GivesRoomOfDiscardedClustersBack) {
  auto top = *Layer::create(dir.path() / "top", {.id = Id::random(), .parent = {}, .disk_bytes = 64 * kClusterBytes});
  const int fd = top->fd();
  const auto engine = over(*Stack::layered(std::move(top), {}, {}));
  if (!engine) GTEST_SKIP() << "io_uring is forbidden here";
  std::vector<std::byte> out(32 * kClusterBytes, std::byte{7});
  EXPECT_EQ(one(*engine, of(Kind::kWrite, 0, out)), "ok");
  EXPECT_EQ(one(*engine, range(Kind::kFlush, 0, 0)), "ok");
  struct stat before {};
  ASSERT_EQ(::fstat(fd, &before), 0);
  EXPECT_EQ(one(*engine, range(Kind::kDiscard, 0, out.size())), "ok");
  EXPECT_EQ(one(*engine, range(Kind::kFlush, 0, 0)), "ok");
  struct stat after {};
  ASSERT_EQ(::fstat(fd, &after), 0);
  EXPECT_LT(after.st_blocks, before.st_blocks / 4);
}

TEST_F(DiskRing, RefusesWhatADiskCannotDo) {
  const auto writable = over(Stack::raw(*open_raw(raw(2 * kClusterBytes), true), true));
  if (!writable) GTEST_SKIP() << "io_uring is forbidden here";
  std::vector<std::byte> sector(kSectorBytes);
  std::vector<std::byte> odd(kSectorBytes - 1);
  EXPECT_EQ(one(*writable, of(Kind::kRead, 2 * kClusterBytes - kSectorBytes, sector)), "ok");
  EXPECT_NE(one(*writable, of(Kind::kRead, 2 * kClusterBytes, sector)), "ok");
  EXPECT_NE(one(*writable, of(Kind::kRead, ~0ULL - kSectorBytes + 1, sector)), "ok");
  EXPECT_NE(one(*writable, of(Kind::kWrite, 0, odd)), "ok");
  EXPECT_NE(one(*writable, of(Kind::kWrite, 1, sector)), "ok");
  EXPECT_NE(one(*writable, range(Kind::kRead, 0, kSectorBytes)), "ok");  // no data to read into
  EXPECT_EQ(writable->counters().failed, 5u);
  const auto read_only = over(Stack::raw(*open_raw(dir.path() / "raw", false), false));
  EXPECT_NE(one(*read_only, of(Kind::kWrite, 0, sector)), "ok");
  EXPECT_NE(one(*read_only, range(Kind::kDiscard, 0, kSectorBytes)), "ok");
  EXPECT_EQ(one(*read_only, of(Kind::kRead, 0, sector)), "ok");
}

TEST_F(DiskRing, HoldsRequestsUpToItsLimit) {
  const auto engine = over(Stack::raw(*open_raw(raw(2 * kClusterBytes), true), true));
  if (!engine) GTEST_SKIP() << "io_uring is forbidden here";
  std::vector<std::byte> sector(kSectorBytes);
  for (std::size_t i = 0; i < kRequestsMax; ++i) {
    Request request = of(Kind::kRead, 0, sector);
    request.token = 1000 + i;
    engine->start(std::move(request));
  }
  EXPECT_TRUE(ended.empty());
  Request request = of(Kind::kRead, 0, sector);
  request.token = 1;
  engine->start(std::move(request));
  EXPECT_NE(ended.at(1), "ok");
  EXPECT_TRUE(engine->drain(Deadline::after(kSoon)).ok());
  EXPECT_EQ(ended.size(), kRequestsMax + 1);
}

}  // namespace
}  // namespace fvmm::disk
