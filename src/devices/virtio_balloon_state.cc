// What a snapshot holds of a virtio-balloon, and the names of its statistics.
#include <fmt/format.h>

#include "base/check.h"
#include "devices/state_codec.h"
#include "devices/virtio_balloon.h"

namespace fvmm::devices {
namespace {

// VIRTIO_BALLOON_S_* in order (section 5.5.6.4; the last six are Linux 6.12's).
constexpr std::array<std::string_view, kBalloonStats> kStatNames{
    "swap_in",     "swap_out",     "major_faults",        "minor_faults",     "free_memory", "total_memory",
    "available",   "disk_caches",  "hugetlb_allocations", "hugetlb_failures", "oom_kills",   "allocation_stalls",
    "async_scans", "direct_scans", "async_reclaims",      "direct_reclaims"};

}  // namespace

std::string_view balloon_stat_name(std::size_t tag) {
  FVMM_CHECK(tag < kStatNames.size(), "a statistic that there is");
  return kStatNames.at(tag);
}

DeviceState VirtioBalloon::save() const {
  const BalloonFigures now = figures();
  std::uint16_t told = 0;
  for (std::size_t tag = 0; tag < kBalloonStats; ++tag) {
    if (now.statistics.at(tag)) told = static_cast<std::uint16_t>(told | 1U << tag);
  }
  StateWriter writer;
  writer.put(now.target_pages);
  writer.put(now.actual_pages);
  writer.put(told);
  for (const auto& value : now.statistics) {
    if (value) writer.put(*value);
  }
  return {.version = kBalloonStateVersion, .bytes = writer.take()};
}

Status VirtioBalloon::load(const DeviceState& state) {
  const auto bad = [](std::string_view why) {
    return Error(Errc::kInvalidArgument, fmt::format("virtio-balloon state: {}", why));
  };
  if (state.version != kBalloonStateVersion) return bad(fmt::format("version {}, want 1", state.version));
  StateReader reader(state.bytes);
  const auto target = reader.get<std::uint32_t>();
  const auto actual = reader.get<std::uint32_t>();
  const auto told = reader.get<std::uint16_t>();
  BalloonStatistics statistics;
  for (std::size_t tag = 0; tag < kBalloonStats; ++tag) {
    if ((told >> tag & 1) != 0) statistics.at(tag) = reader.get<std::uint64_t>();
  }
  if (!reader.complete()) return bad("wrong length");
  const std::lock_guard lock(mutex_);
  figures_.target_pages = target;
  figures_.actual_pages = actual;
  figures_.statistics = statistics;
  return {};
}

}  // namespace fvmm::devices
