// Mutated layer files through Layer::open(): never a crash, never a wild allocation, and what is accepted can be read
// within its file. FVMM_FUZZ_SEED and FVMM_FUZZ_ROUNDS change the run; a failure prints its seed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cstring>

#include "base/file.h"
#include "disk/layer.h"
#include "support/mutate.h"
#include "support/temp_dir.h"

namespace fvmm::disk {
namespace {

using testing::mutate;
using testing::Random;

const std::uint64_t kSeed = testing::fuzz_setting("FVMM_FUZZ_SEED", 20260101);
const std::uint64_t kRounds = testing::fuzz_setting("FVMM_FUZZ_ROUNDS", 20'000);
constexpr std::uint64_t kBytes = 20 * kClusterBytes + kSectorBytes;
constexpr std::size_t kHead = 4096 + 64;  // header, and the part of the map that is used

/// Makes the checksums of header and seal right again, so that what lies behind them is reached.
void reseal(std::string& head) {
  const auto put = [&head](std::size_t bytes) {
    const std::uint64_t checksum = XXH3_64bits(head.data(), bytes);
    std::memcpy(head.data() + bytes, &checksum, sizeof checksum);
  };
  if (head.size() < 88) return;
  put(56);
  put(80);
}

class FuzzLayer : public ::testing::Test {
 protected:
  /// A layer with clusters of all kinds; what it begins with.
  std::string made(bool sealed) {
    std::filesystem::remove(path_);
    auto layer = Layer::create(path_, {.id = Id::random(), .parent = Id::random(), .disk_bytes = kBytes}).value();
    layer->map().set(3, ClusterState::kData);
    layer->map().set(4, ClusterState::kZero);
    EXPECT_TRUE(layer->write_map().ok());
    EXPECT_TRUE(!sealed || layer->seal().ok());
    std::string head(kHead, 0);
    EXPECT_TRUE(read_all(layer->fd(), std::as_writable_bytes(std::span(head)), 0).ok());
    return head;
  }
  void open(const std::string& head) {
    const UniqueFd file = open_file(path_, O_RDWR).value();
    ASSERT_TRUE(write_all(file.get(), as_bytes(head).first(std::min(head.size(), kHead)), 0).ok());
    const auto layer = Layer::open(path_, Layer::Access::kRead);
    if (!layer) {
      const Errc code = layer.error().code();
      EXPECT_TRUE(code == Errc::kDataLoss || code == Errc::kUnimplemented) << layer.error().message();
      return;
    }
    EXPECT_EQ((*layer)->map().clusters(), clusters_of(kBytes)) << "the file has the length of that many clusters alone";
    EXPECT_EQ(clusters_of((*layer)->info().disk_bytes), clusters_of(kBytes));
    if ((*layer)->sealed()) (void)(*layer)->verify();  // reads all that it says it has
  }
  testing::TempDir dir_;
  const std::filesystem::path path_ = dir_.path() / "layer";
};

TEST_F(FuzzLayer, MutationsAreRefusedOrReadWithinTheFile) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  Random random(kSeed);
  for (const bool sealed : {false, true}) {
    const std::string good = made(sealed);
    ASSERT_EQ(::chmod(path_.c_str(), 0600), 0);
    for (std::uint64_t round = 0; round < kRounds / 2; ++round) {
      std::string head = mutate(good.substr(0, round % 2 == 0 ? 96 : kHead), random);
      if (random() % 4 != 0) reseal(head);
      ASSERT_NO_FATAL_FAILURE(open(head + good.substr(std::min(head.size(), good.size()))));
      if (HasFailure()) FAIL() << "round " << round << (sealed ? ", sealed" : "");
    }
  }
}

}  // namespace
}  // namespace fvmm::disk
