#include "disk/cluster_map.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace fvmm::disk {

namespace {
constexpr std::uint64_t kPerWord = 32;
constexpr std::uint64_t kWordsPerBlock = kMapBlockBytes / sizeof(std::uint64_t);
constexpr std::uint64_t kLowBits = 0x5555555555555555;

static_assert(std::endian::native == std::endian::little, "maps are little endian on disk");

std::uint64_t blocks_of(std::uint64_t clusters) {
  return (clusters + kClustersPerBlock - 1) / kClustersPerBlock;
}

unsigned shift_of(ClusterIndex cluster) {
  return static_cast<unsigned>(cluster % kPerWord) * 2;
}
}  // namespace

ClusterMap::ClusterMap(std::uint64_t clusters)
    : clusters_(clusters), words_(blocks_of(clusters) * kWordsPerBlock), changed_(blocks_of(clusters)) {}

ClusterState ClusterMap::at(ClusterIndex cluster) const {
  FVMM_CHECK(cluster < clusters_, "a cluster past the end of the disk");
  return static_cast<ClusterState>((words_[cluster / kPerWord] >> shift_of(cluster)) & 3);
}

void ClusterMap::set(ClusterIndex cluster, ClusterState state) {
  if (at(cluster) == state) return;
  std::uint64_t& word = words_[cluster / kPerWord];
  word &= ~(3ULL << shift_of(cluster));
  word |= static_cast<std::uint64_t>(state) << shift_of(cluster);
  changed_[cluster / kClustersPerBlock] = true;
}

std::uint64_t ClusterMap::count(ClusterState state) const {
  std::uint64_t found = 0;
  for (const std::uint64_t word : words_) {
    const std::uint64_t low = word & kLowBits;
    const std::uint64_t high = (word >> 1) & kLowBits;
    found += static_cast<std::uint64_t>(std::popcount(state == ClusterState::kData   ? low
                                                      : state == ClusterState::kZero ? high
                                                                                     : low | high));
  }
  return state == ClusterState::kAbsent ? clusters_ - found : found;
}

std::uint64_t ClusterMap::disk_bytes(std::uint64_t clusters) {
  return blocks_of(clusters) * kMapBlockBytes;
}

std::vector<std::byte> ClusterMap::block(std::uint64_t index) const {
  FVMM_CHECK(index < changed_.size(), "a block past the end of the map");
  std::vector<std::byte> out(kMapBlockBytes);
  std::memcpy(out.data(), &words_[index * kWordsPerBlock], kMapBlockBytes);
  return out;
}

Status ClusterMap::load(std::span<const std::byte> bytes) {
  if (bytes.size() != words_.size() * sizeof(std::uint64_t)) {
    return Error(Errc::kDataLoss, "cluster map of " + std::to_string(bytes.size()) + " bytes where " +
                                      std::to_string(words_.size() * sizeof(std::uint64_t)) + " belong");
  }
  std::vector<std::uint64_t> words(words_.size());
  std::memcpy(words.data(), bytes.data(), bytes.size());
  for (std::uint64_t i = 0; i < words.size(); ++i) {
    const std::uint64_t first = i * kPerWord;
    const std::uint64_t valid = first >= clusters_ ? 0 : std::min(kPerWord, clusters_ - first);
    const std::uint64_t mask = valid == kPerWord ? ~0ULL : (1ULL << (valid * 2)) - 1;
    if ((words[i] & (words[i] >> 1) & kLowBits) != 0 || (words[i] & ~mask) != 0) {
      return Error(Errc::kDataLoss, "cluster map: a state that does not exist near cluster " + std::to_string(first));
    }
  }
  words_ = std::move(words);
  std::fill(changed_.begin(), changed_.end(), false);
  return {};
}

std::vector<std::uint64_t> ClusterMap::take_changed() {
  std::vector<std::uint64_t> blocks;
  for (std::uint64_t i = 0; i < changed_.size(); ++i) {
    if (changed_[i]) blocks.push_back(i);
    changed_[i] = false;
  }
  return blocks;
}

void ClusterMap::put_back(std::span<const std::uint64_t> blocks) {
  for (const std::uint64_t block : blocks) changed_[block] = true;
}

}  // namespace fvmm::disk
