// A disk as a guest sees it, to hold an Engine against: the version of each sector, what of it a flush has promised,
// and which sectors are being written.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "disk/engine.h"

namespace fvmm::testing {

inline constexpr std::uint64_t kZeroVersion = 0;  // a sector of zeros

inline void stamp(std::byte* sector, std::uint64_t version) {
  for (std::size_t i = 0; i < disk::kSectorBytes; i += sizeof(version))
    std::memcpy(sector + i, &version, sizeof(version));
}

/// The version that a sector holds, the same in each of its words; ~0 for one that is torn.
inline std::uint64_t version_of(const std::byte* sector) {
  std::uint64_t first = 0;
  std::memcpy(&first, sector, sizeof(first));
  for (std::size_t i = 0; i < disk::kSectorBytes; i += sizeof(first)) {
    if (std::memcmp(sector + i, &first, sizeof(first)) != 0) return ~0ULL;
  }
  return first;
}

/// All versions that each sector has had; `floor` is the oldest that a loss of power may bring back.
struct DiskModel {
  struct Sector {
    std::vector<std::uint64_t> versions;
    std::size_t ended = 0;  // index of the newest whose request has ended
    std::size_t floor = 0;
    bool in_flight = false;
  };
  std::vector<Sector> sectors;

  explicit DiskModel(const std::vector<std::uint64_t>& initial) {
    for (const std::uint64_t version : initial) sectors.push_back({.versions = {version}});
  }
  [[nodiscard]] bool free(std::uint64_t first, std::uint64_t count) const {
    for (std::uint64_t i = first; i < first + count; ++i) {
      if (sectors[i].in_flight) return false;
    }
    return true;
  }
  void begin(std::uint64_t first, std::uint64_t count, const std::vector<std::uint64_t>& versions) {
    for (std::uint64_t i = 0; i < count; ++i) {
      sectors[first + i].versions.push_back(versions[i]);
      sectors[first + i].in_flight = true;
    }
  }
  void end(std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t i = first; i < first + count; ++i) {
      sectors[i].in_flight = false;
      sectors[i].ended = sectors[i].versions.size() - 1;
    }
  }
  [[nodiscard]] std::vector<std::size_t> promise() const {  // what a flush that begins now must keep
    std::vector<std::size_t> out;
    for (const Sector& sector : sectors) out.push_back(sector.ended);
    return out;
  }
  void promised(const std::vector<std::size_t>& floors) {
    for (std::size_t i = 0; i < sectors.size(); ++i) sectors[i].floor = std::max(sectors[i].floor, floors[i]);
  }
  [[nodiscard]] bool may_hold(std::uint64_t sector, std::uint64_t version) const {
    const Sector& known = sectors[sector];
    for (std::size_t i = known.floor; i < known.versions.size(); ++i) {
      if (known.versions[i] == version) return true;
    }
    return false;
  }
};

}  // namespace fvmm::testing
