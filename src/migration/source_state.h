// The source's protocol as a pure function. No socket, no clock: source.cc asks it what may come next.
//
//   Connecting ─HelloOk─► Copying ─Converged─► StopAndCopy ─PeerPrepared─► Committing ─Started─► Done
//        └──────Failed──────┴────────Failed─────────┴──► Aborted ◄─RefusedDurably─┤
//                                                                                 └─Failed─► Unknown
#pragma once

#include <optional>
#include <string_view>

namespace fvmm::migration {

enum class SourceState {
  kConnecting,   // the guest runs here
  kCopying,      // the guest runs here; rounds of pages (none in suspend mode)
  kStopAndCopy,  // paused, still ours to resume
  kCommitting,   // COMMIT is on its way: the peer may already run the guest
  kDone,         // the peer runs it
  kAborted,      // we run it (or it is paused as the user left it)
  kUnknown,      // no answer: neither side may run until resolved
};
inline constexpr int kSourceStates = 7;

enum class SourceEvent {
  kHelloOk,         // READY: admitted, `may-start` durable there, `leaving` durable here
  kConverged,       // what is left fits into the pause
  kPeerPrepared,    // PREPARED: whole memory and state are at the peer
  kStarted,         // STARTED, or the answer "started" to a query
  kRefusedDurably,  // REFUSED_DURABLY, or the answer "refused": the peer can never start it any more
  kFailed,          // anything else that went wrong: connection, deadline, cancel, a message out of place
};
inline constexpr int kSourceEvents = 6;

constexpr std::optional<SourceState> next(SourceState state, SourceEvent event) {
  using S = SourceState;
  using E = SourceEvent;
  switch (state) {
    case S::kConnecting:
      if (event == E::kHelloOk) return S::kCopying;
      if (event == E::kFailed || event == E::kRefusedDurably) return S::kAborted;
      break;
    case S::kCopying:
      if (event == E::kConverged) return S::kStopAndCopy;
      if (event == E::kFailed || event == E::kRefusedDurably) return S::kAborted;
      break;
    case S::kStopAndCopy:
      if (event == E::kPeerPrepared) return S::kCommitting;
      if (event == E::kFailed || event == E::kRefusedDurably) return S::kAborted;
      break;
    case S::kCommitting:  // never resume on our own
      if (event == E::kStarted) return S::kDone;
      if (event == E::kRefusedDurably) return S::kAborted;
      if (event == E::kFailed) return S::kUnknown;
      break;
    case S::kUnknown:  // an answer that came later, by query
      if (event == E::kStarted) return S::kDone;
      if (event == E::kRefusedDurably) return S::kAborted;
      if (event == E::kFailed) return S::kUnknown;
      break;
    case S::kDone:
    case S::kAborted:
      break;
  }
  return std::nullopt;  // not allowed here: the caller treats it as kFailed
}

/// Whether the source has the right to run the guest in this state.
constexpr bool may_run_here(SourceState state) {
  return state == SourceState::kConnecting || state == SourceState::kCopying || state == SourceState::kStopAndCopy ||
         state == SourceState::kAborted;
}

constexpr std::string_view to_string(SourceState state) {
  switch (state) {
    case SourceState::kConnecting:
      return "connecting";
    case SourceState::kCopying:
      return "copying";
    case SourceState::kStopAndCopy:
      return "stop-and-copy";
    case SourceState::kCommitting:
      return "committing";
    case SourceState::kDone:
      return "done";
    case SourceState::kAborted:
      return "aborted";
    case SourceState::kUnknown:
      return "unknown";
  }
  return "invalid";
}

static_assert(next(SourceState::kCommitting, SourceEvent::kFailed) == SourceState::kUnknown);

}  // namespace fvmm::migration
