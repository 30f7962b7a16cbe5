#include "disk/engine.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "support/disk_model.h"
#include "support/faulty_io.h"
#include "support/temp_dir.h"

namespace fvmm::disk {
namespace {

using testing::DiskModel;
using testing::FaultyIo;
using Kind = Request::Kind;

constexpr std::uint64_t kSectors = 5 * (kClusterBytes / kSectorBytes) + 3;  // the last cluster is not whole
constexpr std::uint64_t kBaseSectors = 3 * (kClusterBytes / kSectorBytes) + 7;
constexpr std::uint64_t kBytes = kSectors * kSectorBytes;
constexpr std::size_t kRequestsUnderWay = 6;

/// A disk of three files: a base that is shorter than the disk, a sealed layer with one cluster, and the top.
class Disk {
 public:
  explicit Disk(std::uint32_t seed) : random_(seed), io_(new FaultyIo(seed)) {
    std::vector<std::uint64_t> versions(kSectors, testing::kZeroVersion);
    std::vector<std::byte> base(kBaseSectors * kSectorBytes);
    for (std::uint64_t i = 0; i < kBaseSectors; ++i)
      testing::stamp(base.data() + i * kSectorBytes, versions[i] = 1000 + i);
    write_file("base", base);
    auto lower = *Layer::create(path("lower"), {.id = lower_id_, .parent = {}, .disk_bytes = kBytes});
    std::vector<std::byte> cluster(kClusterBytes);
    for (std::uint64_t i = 0; i < kClusterBytes / kSectorBytes; ++i) {
      const std::uint64_t sector = kClusterBytes / kSectorBytes + i;
      testing::stamp(cluster.data() + i * kSectorBytes, versions[sector] = 5000 + sector);
    }
    EXPECT_TRUE(write_all(lower->fd(), cluster, lower->data_offset(1)).ok());
    lower->map().set(1, ClusterState::kData);
    EXPECT_TRUE(write_all(lower->fd(), lower->map().block(0), Layer::map_offset(0)).ok());
    auto top = *Layer::create(path("top"), {.id = Id::random(), .parent = lower_id_, .disk_bytes = kBytes});
    io_->watch(top->fd());
    top_fd_ = top->fd();
    model = std::make_unique<DiskModel>(versions);
    start_engine(std::move(top), std::unique_ptr<FileIo>(io_));
  }

  /// Random requests until so many have begun, never two at once on one sector; every read is held against the model.
  void work(int requests) {
    for (int begun = 0; begun < requests;) {
      if (engine->under_way() < kRequestsUnderWay && begin_one()) ++begun;
      ASSERT_TRUE(engine->poll(Deadline::after(std::chrono::seconds(1))).ok());
    }
  }

  [[nodiscard]] FaultyIo& io() { return *io_; }

  /// The power goes: a new engine on what the top layer's disk has kept.
  void lose_power() {
    const UniqueFd after = *open_file(path("after"), O_RDWR | O_CREAT | O_TRUNC);
    io_->lose_power(top_fd_, after.get());
    without_power_ = true;  // what ends from here on ends for nobody
    ASSERT_TRUE(engine->drain(Deadline::after(std::chrono::seconds(10))).ok());
    auto top = Layer::open(path("after"), Layer::Access::kWrite);
    ASSERT_TRUE(top.ok()) << top.error().message();
    start_engine(std::move(*top), std::make_unique<FaultyIo>(1));
    without_power_ = false;
  }

  std::vector<std::byte> read_all_of_it() {
    std::vector<std::byte> bytes(kBytes);
    engine->start(
        {.kind = Kind::kRead, .offset = 0, .bytes = kBytes, .data = {{bytes.data(), bytes.size()}}, .token = 0});
    EXPECT_TRUE(engine->drain(Deadline::after(std::chrono::seconds(10))).ok());
    return bytes;
  }

  std::unique_ptr<DiskModel> model;
  std::unique_ptr<Engine> engine;
  std::uint64_t errors = 0;  // requests that ended with one

 private:
  struct Begun {
    Kind kind = Kind::kRead;
    std::uint64_t first = 0;
    std::uint64_t count = 0;
    std::vector<std::byte> bytes;
    std::vector<std::size_t> promise;
  };

  [[nodiscard]] std::filesystem::path path(const std::string& name) const { return dir_.path() / name; }
  void write_file(const std::string& name, const std::vector<std::byte>& bytes) {
    const UniqueFd file = *open_file(path(name), O_RDWR | O_CREAT);
    EXPECT_TRUE(write_all(file.get(), bytes, 0).ok());
  }
  void start_engine(std::unique_ptr<Layer> top, std::unique_ptr<FileIo> io) {
    engine.reset();
    std::vector<std::shared_ptr<const Layer>> lower = {*Layer::open(path("lower"), Layer::Access::kRead)};
    auto stack = Stack::layered(std::move(top), std::move(lower), *open_raw(path("base"), false));
    ASSERT_TRUE(stack.ok()) << stack.error().message();
    engine = std::make_unique<Engine>(std::move(*stack), std::move(io),
                                      [this](std::uint64_t token, const Status& status) { ended(token, status); });
  }

  bool begin_one() {
    static constexpr Kind kKinds[] = {Kind::kRead,  Kind::kWrite,   Kind::kWrite,      Kind::kWrite,
                                      Kind::kFlush, Kind::kDiscard, Kind::kWriteZeroes};
    Begun begun;
    begun.kind = kKinds[random_() % std::size(kKinds)];
    begun.first = random_() % kSectors;
    begun.count = std::min(1 + random_() % (random_() % 3 == 0 ? 300 : 40), kSectors - begun.first);
    if (begun.kind == Kind::kFlush) begun.first = begun.count = 0;
    if (begun.kind == Kind::kDiscard && random_() % 2 == 0) {  // a whole cluster, which is taken
      begun.first -= begun.first % 128;
      begun.count = std::min<std::uint64_t>(128, kSectors - begun.first);
    }
    if (!model->free(begun.first, begun.count)) return false;
    Request request{.kind = begun.kind,
                    .offset = begun.first * kSectorBytes,
                    .bytes = begun.count * kSectorBytes,
                    .data = {},
                    .token = ++tokens_};
    if (begun.kind == Kind::kRead || begun.kind == Kind::kWrite) begun.bytes.resize(request.bytes);
    std::vector<std::uint64_t> versions(begun.count, testing::kZeroVersion);
    if (begun.kind == Kind::kWrite) {
      for (std::uint64_t i = 0; i < begun.count; ++i)
        testing::stamp(begun.bytes.data() + i * kSectorBytes, versions[i] = 100'000 + ++versions_);
    }
    if (begun.kind == Kind::kDiscard) {  // only whole clusters change
      const std::uint64_t end =
          begun.first + begun.count == kSectors ? kSectors : (begun.first + begun.count) / 128 * 128;
      begun.first = (begun.first + 127) / 128 * 128;
      begun.count = end > begun.first ? end - begun.first : 0;
      versions.resize(begun.count);
    }
    if (begun.kind == Kind::kFlush) begun.promise = model->promise();
    if (begun.kind == Kind::kRead) {
      for (std::uint64_t i = 0; i < begun.count; ++i) model->sectors[begun.first + i].in_flight = true;
    } else {
      model->begin(begun.first, begun.count, versions);
    }
    request.data = parts_of(begun.bytes);
    begun_[request.token] = std::move(begun);
    engine->start(std::move(request));
    return true;
  }

  std::vector<iovec> parts_of(std::vector<std::byte>& bytes) {  // of odd lengths, as guests' buffers are
    std::vector<iovec> parts;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t length = std::min<std::size_t>(bytes.size() - at, 1 + random_() % 9000);
      parts.push_back({.iov_base = bytes.data() + at, .iov_len = length});
      at += length;
    }
    return parts;
  }

  void ended(std::uint64_t token, const Status& status) {
    if (token == 0) {
      EXPECT_TRUE(status.ok()) << status.error().message();
      return;
    }
    const Begun begun = std::move(begun_.at(token));
    begun_.erase(token);
    if (without_power_) return;
    if (!status) ++errors;
    if (begun.kind == Kind::kFlush) {
      if (status) model->promised(begun.promise);
      return;
    }
    if (begun.kind != Kind::kRead) {
      if (status) return model->end(begun.first, begun.count);
      for (std::uint64_t i = begun.first; i < begun.first + begun.count; ++i) model->sectors[i].in_flight = false;
      return;
    }
    EXPECT_TRUE(status.ok());
    for (std::uint64_t i = 0; i < begun.count; ++i) {
      auto& sector = model->sectors[begun.first + i];
      sector.in_flight = false;
      const std::uint64_t version = testing::version_of(begun.bytes.data() + i * kSectorBytes);
      if (io_->fail_every == 0) {
        ASSERT_EQ(version, sector.versions.back()) << "sector " << begun.first + i;
      } else {
        ASSERT_TRUE(model->may_hold(begun.first + i, version))
            << "sector " << begun.first + i << " version " << version;
      }
    }
  }

  testing::TempDir dir_{"/dev/shm"};  // no disk need spin for a model of one
  std::mt19937 random_;
  Id lower_id_ = Id::random();
  FaultyIo* io_;  // of the first engine
  int top_fd_ = -1;
  bool without_power_ = false;
  std::uint64_t tokens_ = 0;
  std::uint64_t versions_ = 0;
  std::map<std::uint64_t, Begun> begun_;
};

class DiskEngineSeeds : public ::testing::TestWithParam<std::uint32_t> {};

TEST_P(DiskEngineSeeds, EveryReadSeesTheLastWriteWhateverTheOrderOfTheFiles) {
  Disk disk(GetParam());
  disk.work(300);
  ASSERT_TRUE(disk.engine->drain(Deadline::after(std::chrono::seconds(10))).ok());
  const auto bytes = disk.read_all_of_it();
  for (std::uint64_t i = 0; i < kSectors; ++i) {
    ASSERT_EQ(testing::version_of(bytes.data() + i * kSectorBytes), disk.model->sectors[i].versions.back())
        << "sector " << i;
  }
}

TEST_P(DiskEngineSeeds, WhatAFlushPromisedOutlivesTheLossOfPower) {
  for (std::uint32_t turn = 0; turn < 6; ++turn) {
    const std::uint32_t seed = GetParam() * 6 + turn;
    Disk disk(seed);
    disk.work(static_cast<int>(4 + seed % 60));  // early: later, few clusters are still without a name in the map
    disk.lose_power();
    const auto bytes = disk.read_all_of_it();
    for (std::uint64_t i = 0; i < kSectors; ++i) {
      const std::uint64_t version = testing::version_of(bytes.data() + i * kSectorBytes);
      ASSERT_TRUE(disk.model->may_hold(i, version))
          << "seed " << seed << " sector " << i << " holds " << version << ", promised "
          << disk.model->sectors[i].versions[disk.model->sectors[i].floor];
    }
  }
}

TEST_P(DiskEngineSeeds, FailingFilesFailRequestsAndNothingElse) {
  Disk disk(GetParam());
  disk.io().fail_every = 10;
  disk.work(200);
  ASSERT_TRUE(disk.engine->drain(Deadline::after(std::chrono::seconds(10))).ok());
  EXPECT_EQ(disk.engine->counters().failed, disk.errors);
  EXPECT_GT(disk.errors, 0u);
  disk.lose_power();
  const auto bytes = disk.read_all_of_it();
  for (std::uint64_t i = 0; i < kSectors; ++i) {
    ASSERT_TRUE(disk.model->may_hold(i, testing::version_of(bytes.data() + i * kSectorBytes))) << "sector " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, DiskEngineSeeds, ::testing::Range(0u, 60u));

}  // namespace
}  // namespace fvmm::disk
