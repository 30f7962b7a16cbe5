// The sending side of a migration. docs/handover.md tells the story of the transaction, docs/wire-protocol.md the
// messages.
//
//   connect, Hello ─► `leaving` durable, READY from the peer ─► rounds (live, precopy) ─► pause ─► last pages, STATE
//   ─► PREPARED ─► COMMIT ─► STARTED ─► `left` durable ─► SETTLED
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/id.h"
#include "base/realtime.h"
#include "base/result.h"
#include "migration/convergence.h"
#include "migration/machine.h"
#include "migration/pacer.h"
#include "migration/page_sender.h"
#include "migration/record.h"
#include "migration/source_state.h"
#include "migration/steps.h"
#include "migration/transport.h"
#include "proto/control.pb.h"

namespace fvmm::migration {

inline constexpr unsigned kConnectionsMax = 8;
inline constexpr std::chrono::milliseconds kReasonWait{500};  // for the peer's reason, after a connection broke
inline constexpr std::uint64_t kShardPages = 512;             // 2 MiB: a page always travels on the same connection
inline constexpr std::chrono::seconds kAnswerWait{10};  // for each of PREPARED and STARTED, inside the overall deadline
inline constexpr std::chrono::seconds kAskWait{4};      // for one question about a session; then it is asked again
inline constexpr std::chrono::milliseconds kAskPause{100};  // between two questions

/// kSuspend (SFVMM): pause, send the delta. kLive (LFVMM): rounds over the delta while the guest runs, then a short
/// pause. kPrecopy: rounds over all of memory, without a template; the classical baseline.
enum class Mode { kSuspend, kPrecopy, kLive };
std::string_view to_string(Mode mode);

struct SourceWaits {
  std::chrono::milliseconds answer{kAnswerWait};  // for PREPARED and for STARTED
  std::chrono::milliseconds asking{kAnswerWait};  // for an answer by question, once the connection broke after COMMIT
  std::chrono::milliseconds ask{kAskWait};
  std::chrono::milliseconds ask_pause{kAskPause};
  std::chrono::milliseconds record{kRecordWait};  // for the last record, while the disk does not take it
};

struct SourceOptions {
  Mode mode = Mode::kSuspend;
  std::string why_mode;
  std::string peer;  // HOST:PORT, for records and errors
  std::string from;  // our daemon's peer address
  unsigned connections = 1;
  std::chrono::microseconds max_downtime{5000};
  std::chrono::milliseconds timeout{60'000};
  bool by_way_back = false;                  // against the generation that the peer kept when the VM came from there
  bool allow_throttle = false;               // hold the guest back when it dirties faster than the link carries
  std::uint64_t bandwidth_bytes_s = 0;       // over all connections, also in the pause; 0: no limit
  std::optional<v1::VmConfig> config_there;  // as the peer shall have it; else as here
  std::string peer_test_hook;                // travels in the Hello
  StepHook on_step;
  std::function<void(const v1::MigrateEvent&)> on_event;  // progress; on the session's thread
  std::chrono::nanoseconds scan{};                        // spent on find_delta() for this session: counts as its time
  SourceWaits waits{};                                    // shorter in tests
};

/// One migration from here. Owner: the session's thread; cancel() from any.
class SourceSession {
 public:
  SourceSession(Guest& guest, SourceOptions options, Transport& transport, Journal& journal);
  ~SourceSession();
  SourceSession(const SourceSession&) = delete;
  SourceSession& operator=(const SourceSession&) = delete;
  SourceSession(SourceSession&&) = delete;
  SourceSession& operator=(SourceSession&&) = delete;

  /// Runs to the end. Afterwards state() is kDone (the guest is frozen here and may be torn down), kAborted (the guest
  /// is as it was) or kUnknown (the guest is frozen and stays so). Never throws away the guest.
  v1::MigrateResult run();
  [[nodiscard]] SourceState state() const { return state_; }  // thread: any
  /// Before COMMIT ends the session as aborted; after it has no effect. Thread: any.
  void cancel();
  [[nodiscard]] const Id& id() const { return session_; }
  /// After kDone, once: the connection, on which the peer goes on with WAY_BACK (way_back.h); null when it is an older
  /// one, or when the VM left without a template.
  [[nodiscard]] std::unique_ptr<net::Stream> take_way_back();
  /// Digest of what the pages that travelled differ from; none(): a generation that only the peer knows.
  [[nodiscard]] memory::Digest base_digest() const;
  /// After kDone: the state that left, for the generation that is kept for the way back.
  [[nodiscard]] const v1::MachineState& final_state() const { return final_state_; }

 private:
  Status connect();
  Status copy_rounds();
  memory::Bitmap first_round();
  Status send_round(memory::Bitmap& pages);
  Status sync();
  Progress assess(const memory::Bitmap& sent);
  Status hold_back();
  Error too_fast(const Progress& now) const;
  Status stop_and_copy();
  Status commit();
  Status send_pages(const memory::Bitmap& pages);
  Status step(std::string_view name);
  Result<v1::PeerMessage> expect(v1::PeerKind wanted, const Deadline& deadline);
  Error explain(Error error);
  Status say(const v1::PeerMessage& message, const Deadline& deadline);
  void advance(SourceEvent event);
  void back_out(const Error& error);
  void ask_until_known();
  Status write_record(v1::SessionOutcome outcome);
  void hint(v1::PeerHello& hello) const;
  v1::PeerHello hello() const;
  [[nodiscard]] const memory::Bitmap& delta() const;
  void progress(std::string_view phase, const Progress& now);
  void phase_done(std::string_view name);
  v1::MigrateResult report(const Status& status);
  SendCounters totals() const;

  Guest& guest_;
  SourceOptions options_;
  Transport& transport_;
  Journal& journal_;
  Id session_ = Id::random();
  std::atomic<SourceState> state_{SourceState::kConnecting};  // written by the session's thread
  Deadline deadline_;
  SteadyTime began_;
  SteadyTime phase_began_;
  SteadyTime paused_at_{};
  bool we_paused_ = false;
  std::optional<ScopedFifo> pause_begins_;  // this thread's waits are the guest's downtime from the pause to STARTED
  bool recorded_ = false;                   // `leaving` is durable
  bool peer_agrees_ = false;                // STARTED: WAY_BACK follows
  std::uint32_t rounds_ = 0;
  double rate_ = 0;                       // bytes per second of the last round
  double dirty_rate_ = 0;                 // bytes per second that the guest wrote meanwhile
  std::uint32_t stalled_rounds_ = 0;      // in a row
  unsigned throttle_ = 0;                 // percent
  std::uint32_t rounds_before_step_ = 0;  // when it was last raised
  Pacer pacer_;
  double setup_ms_ = 0;
  double downtime_ms_ = 0;
  double duration_ms_ = 0;
  std::vector<v1::Phase> phases_;
  std::unique_ptr<memory::DirtyTracker::Reader> round_;
  v1::MachineState final_state_;
  std::mutex streams_mutex_;                        // cancel() against connect(): guards the two below
  std::unique_ptr<net::Stream> control_;            // streams_mutex_ while set
  std::vector<std::unique_ptr<net::Stream>> data_;  // streams_mutex_ while growing
  std::vector<std::unique_ptr<PageSender>> senders_;
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> committing_{false};  // cancel() has no effect any more
};

/// What a living worker knows of a session in this state, whatever its disk took: for the destination's question, and
/// for its own fvmmd. "started" and "refused" are final; "unknown" while it is under way, or waits for an answer
/// itself.
v1::SessionAnswer answer_of(SourceState state);

/// Asks a peer about a session on a connection of its own. "started", "refused" or "unknown".
Result<v1::SessionAnswer> ask_session(Transport& transport, const Id& session, const std::string& vm,
                                      const Deadline& deadline);

}  // namespace fvmm::migration
