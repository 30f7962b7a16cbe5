#include "migration/policy.h"

#include <algorithm>

namespace fvmm::migration {

std::chrono::nanoseconds interval_in_force(const ReplicationPolicy& policy, const ReplicationPace& pace) {
  std::chrono::nanoseconds wanted = policy.interval;
  // Just before a generation is sealed, the one before it is an interval and a round trip old.
  if (policy.lag_max.count() != 0) wanted = std::min(wanted, policy.lag_max - pace.round_trip);
  return std::clamp<std::chrono::nanoseconds>(std::max(wanted, pace.round_trip), kReplicateIntervalMin,
                                              kReplicateIntervalMax);
}

bool generation_is_due(const ReplicationPolicy& policy, const ReplicationPace& pace) {
  if (pace.in_flight >= kInFlightMax) return false;
  if (pace.since_instant >= interval_in_force(policy, pace)) return true;
  return policy.dirty_pages_max != 0 && pace.dirty_pages >= policy.dirty_pages_max;
}

bool is_lagging(const ReplicationPolicy& policy, std::chrono::nanoseconds lag) {
  const auto allowed = policy.lag_max.count() != 0 ? policy.lag_max : policy.interval * kLagIntervals;
  return lag > allowed;
}

}  // namespace fvmm::migration
