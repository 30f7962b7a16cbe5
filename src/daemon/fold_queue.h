// Which generations are to be looked at for a fold in the background, and when: no I/O, no clock of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "base/clock.h"
#include "migration/policy.h"

namespace fvmm::daemon {

inline constexpr std::size_t kFoldsWaitingMax = 4096;  // names; what comes on top is found at the next start

struct FoldTimes {
  /// A generation of ours (NAME@G) waits until its line has rested that long: while a VM is replicated to this host its
  /// newest generation changes all the time, and its chain is kept short by squashing.
  std::chrono::milliseconds rest = std::chrono::minutes(15);
  std::chrono::milliseconds retry = std::chrono::minutes(1);  // after a full disk: doubled each time
  std::chrono::milliseconds retry_max = std::chrono::hours(1);
};
static_assert(FoldTimes{}.rest > migration::kReplicateIntervalMax, "a line that is replicated to never rests");

/// Templates that people named are due at once; of each line of generations the newest, once the line rests.
/// Owner: BackgroundFold, under its lock.
class FoldQueue {
 public:
  explicit FoldQueue(FoldTimes times) : times_(times) {}

  /// A generation was sealed under that name, or found at start. A newer one of a line takes the older one's place.
  /// False: there are kFoldsWaitingMax others.
  bool note(const std::string& name, SteadyTime now);
  /// The one that has been due for longest; it is worked on until it is reported by one of the calls below.
  std::optional<std::string> take(SteadyTime now);
  [[nodiscard]] std::optional<SteadyTime> next_due() const;
  /// Whether a newer one of its line has come since it was taken.
  [[nodiscard]] bool superseded(const std::string& name) const;

  void done(const std::string& name);  // folded, not worth it, or gone
  /// It is tried again after a wait that doubles. True: the first time, so that it is logged once.
  bool put_off(const std::string& name, std::string why, SteadyTime now);
  void again(const std::string& name, SteadyTime now);    // it was interrupted: once more after the shortest wait
  void failed(const std::string& name, std::string why);  // until it is noted anew
  /// For people: "" (nothing to do), "waiting", "folding", "put off: why", "failed: why".
  [[nodiscard]] std::string state(const std::string& name) const;

 private:
  enum class Stage : std::uint8_t { kWaiting, kFolding, kPutOff, kFailed };
  struct Entry {
    std::string name;
    SteadyTime due;
    Stage stage = Stage::kWaiting;
    unsigned retries = 0;
    std::string why;
  };
  Entry* find(const std::string& name);
  const FoldTimes times_;
  std::map<std::string, Entry> entries_;  // by name, or line and '@'
};

}  // namespace fvmm::daemon
