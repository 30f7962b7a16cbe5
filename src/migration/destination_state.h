// The destination's protocol as a pure function, and the one decision that two threads may race for.
//
//   Preparing ─Ready─► Receiving ─AllLoaded─► Prepared ─Commit─► Starting ─Running─► Started
//       └──Failed──► Gone   └─Failed─┴──────────┴──Failed/Query──► Refused ◄─Failed──┘
#pragma once

#include <atomic>
#include <optional>

namespace fvmm::migration {

enum class DestinationState {
  kPreparing,  // nothing durable yet
  kReceiving,  // `may-start` is durable; pages and state arrive
  kPrepared,   // whole; waits for COMMIT
  kStarting,   // COMMIT received and accepted
  kStarted,    // the guest runs here
  kRefused,    // durably: any later COMMIT of this session is rejected
  kGone,       // never admitted
};
inline constexpr int kDestinationStates = 7;

enum class DestinationEvent { kReady, kAllLoaded, kCommit, kRunning, kFailed };
inline constexpr int kDestinationEvents = 5;

constexpr std::optional<DestinationState> next(DestinationState state, DestinationEvent event) {
  using S = DestinationState;
  using E = DestinationEvent;
  switch (state) {
    case S::kPreparing:
      if (event == E::kReady) return S::kReceiving;
      if (event == E::kFailed) return S::kGone;
      break;
    case S::kReceiving:
      if (event == E::kAllLoaded) return S::kPrepared;
      if (event == E::kFailed) return S::kRefused;
      break;
    case S::kPrepared:
      if (event == E::kCommit) return S::kStarting;
      if (event == E::kFailed) return S::kRefused;
      break;
    case S::kStarting:
      if (event == E::kRunning) return S::kStarted;
      if (event == E::kFailed) return S::kRefused;  // no instruction of the guest ran here
      break;
    case S::kStarted:
    case S::kRefused:
    case S::kGone:
      break;
  }
  return std::nullopt;
}

/// Whether this side has the right to run the guest.
constexpr bool may_run_here(DestinationState state) {
  return state == DestinationState::kStarting || state == DestinationState::kStarted;
}

/// COMMIT and a query about the session race here, and exactly one of them wins. Thread: any.
class Verdict {
 public:
  enum class Value : int { kOpen, kCommitted, kRefused };
  bool commit() { return decide(Value::kCommitted); }
  bool refuse() { return decide(Value::kRefused); }
  [[nodiscard]] Value value() const { return value_.load(); }

 private:
  bool decide(Value wanted) {
    Value open = Value::kOpen;
    return value_.compare_exchange_strong(open, wanted) || open == wanted;
  }
  std::atomic<Value> value_{Value::kOpen};
};

}  // namespace fvmm::migration
