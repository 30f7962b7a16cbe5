// Replications that have ended here and whose peers have not heard of it: each is told until it answers, also by the
// next fvmmd. Until then the peer holds a replica that it takes for a living one.
#pragma once

#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/id.h"
#include "base/result.h"
#include "proto/peer.pb.h"

namespace fvmm::daemon {

inline constexpr std::size_t kUntoldStopsMax = 1024;           // past that a stop is told once, and that is said
inline constexpr std::chrono::seconds kTellWait{5};            // for one peer to answer
inline constexpr std::chrono::milliseconds kTellFirst{1'000};  // between two attempts at one peer; then twice as long
inline constexpr std::chrono::milliseconds kTellLast{60'000};
inline constexpr std::chrono::hours kTellDays{24 * 30};  // then a peer that never answered is given up

/// Thread: any. One thread of its own tells what was not told at once.
class ReplicaStops {
 public:
  enum class Told {
    kYes,           // the peer has dropped the replica
    kRecovered,     // the VM was recovered there: here it is fenced
    kLater,         // it does not answer: tried again
    kNotUnderstood  // it refuses for good, as an older fvmmd does
  };
  struct Outcome {
    Told told = Told::kLater;
    std::string why;  // unless told
  };
  struct Parts {
    std::filesystem::path directory;                                      // STATE/replica-stops: one file each
    std::function<Result<v1::PeerMessage>(const v1::ReplicaStop&)> tell;  // one attempt: the peer's answer
    std::function<void(const v1::ReplicaStop&)> on_recovered;  // heard of by the thread: it must not run here
    std::chrono::milliseconds first = kTellFirst;              // shorter in tests
  };
  /// Reads what the last fvmmd left. kDataLoss names a file that is none of ours.
  static Result<std::unique_ptr<ReplicaStops>> open(Parts parts);
  ~ReplicaStops();
  ReplicaStops(const ReplicaStops&) = delete;
  ReplicaStops& operator=(const ReplicaStops&) = delete;
  ReplicaStops(ReplicaStops&&) = delete;
  ReplicaStops& operator=(ReplicaStops&&) = delete;

  /// Durable first; then one attempt. An error: not even durable, and nobody was told.
  Result<Outcome> tell(const v1::ReplicaStop& stop);
  /// A new replication of the VM to the same peer takes the place of the old one, whose end is not told any more.
  void supersede(const std::string& vm_id, const std::string& peer);
  [[nodiscard]] std::size_t untold() const;

 private:
  struct Notice {
    v1::ReplicaStop stop;
    SteadyTime due{};
    std::chrono::milliseconds pause{};
    bool telling = false;  // one attempt at a time
  };
  explicit ReplicaStops(Parts parts) : parts_(std::move(parts)) {}
  [[nodiscard]] std::filesystem::path file_of(const std::string& key) const { return parts_.directory / (key + ".pb"); }
  Status load();
  Outcome attempt(const std::string& key, std::unique_lock<std::mutex>& lock);
  void forget(const std::string& key);
  void loop();

  const Parts parts_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Notice> notices_;  // mutex_; by VM and replication
  bool stopping_ = false;                  // mutex_
  std::thread thread_;
};

/// Asks a peer to forget a replication: FORGET_REPLICA, and its answer. `from`: our peer address.
Result<v1::PeerMessage> tell_stop(const v1::ReplicaStop& stop, const std::string& from, const Deadline& deadline);

}  // namespace fvmm::daemon
