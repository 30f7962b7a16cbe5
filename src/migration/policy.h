// Templating regularly: when the next generation is due. One pure function.
#pragma once

#include <chrono>
#include <cstdint>

namespace fvmm::migration {

inline constexpr std::chrono::milliseconds kReplicateInterval{1000};  // when nobody says otherwise
inline constexpr std::chrono::milliseconds kReplicateIntervalMin{5};
inline constexpr std::chrono::milliseconds kReplicateIntervalMax{600'000};
inline constexpr unsigned kLagIntervals = 10;  // the lag allowed when nobody says otherwise

struct ReplicationPolicy {
  std::chrono::milliseconds interval = kReplicateInterval;  // wanted between two generations
  std::uint64_t dirty_pages_max = 0;                        // take one early when so many pages differ; 0: never
  std::chrono::milliseconds lag_max{0};                     // age of the newest sealed generation; 0: kLagIntervals,
                                                            // and the interval alone decides
};

/// What is known when the policy is asked.
struct ReplicationPace {
  std::chrono::nanoseconds since_instant{};  // since the last generation's instant
  std::chrono::nanoseconds round_trip{};     // of the last generation: from its instant until it was sealed
  std::uint64_t in_flight = 0;               // generations captured and not sealed
  std::uint64_t dirty_pages = 0;             // since the last generation, as far as harvested
};

/// The interval in force: the one wanted, or a shorter one where the lag allowed asks for that, but never shorter than
/// it takes to get a generation sealed, so that they do not queue up, however
/// slow the link or the peer's disk.
std::chrono::nanoseconds interval_in_force(const ReplicationPolicy& policy, const ReplicationPace& pace);

/// Whether the next generation is due: by time, or early by dirt. Never while kInFlightMax are on their way.
bool generation_is_due(const ReplicationPolicy& policy, const ReplicationPace& pace);

inline constexpr std::uint64_t kInFlightMax = 2;  // one on the link, one being captured into the buffer

/// Whether the newest sealed generation is older than the policy allows.
bool is_lagging(const ReplicationPolicy& policy, std::chrono::nanoseconds lag);

}  // namespace fvmm::migration
