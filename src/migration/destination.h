// The receiving side of a migration: a replica that may not run before COMMIT. docs/handover.md, docs/wire-protocol.md.
//
//   Hello ─► prepare everything slow ─► `may-start` durable ─► READY ─► pages, STATE ─► load ─► PREPARED
//   ─► COMMIT ─► run ─► STARTED ─► record `started` ─► SETTLED
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "base/clock.h"
#include "base/id.h"
#include "base/mailbox.h"
#include "base/realtime.h"
#include "base/result.h"
#include "migration/destination_state.h"
#include "migration/machine.h"
#include "migration/page_receiver.h"
#include "migration/record.h"
#include "migration/steps.h"

namespace fvmm::migration {

inline constexpr std::size_t kDataConnectionsQueued = 16;
inline constexpr std::chrono::seconds kCommitWait{15};  // after PREPARED; then the replica is refused durably
inline constexpr std::chrono::seconds kSettledWait{10};
inline constexpr std::chrono::seconds kConnectionsWait{10};   // after READY, for all data connections
inline constexpr std::chrono::milliseconds kControlLook{50};  // between two looks for the source's end meanwhile
inline constexpr std::chrono::seconds kStartWait{3};          // of a question, for the end of a start under way

struct DataConnection {
  std::uint32_t index = 0;
  std::unique_ptr<net::Stream> stream;
};

/// Makes the replica's machine: memory on the template, CPU as the source's guest has it, devices. Everything slow.
using MakeGuest = std::function<Result<std::unique_ptr<Guest>>(const v1::PeerHello& hello)>;

/// One migration to here. Owner: the session's thread; add_connection(), answer() and cancel() from any.
class DestinationSession {
 public:
  struct Waits {
    std::chrono::milliseconds commit{kCommitWait};
    std::chrono::milliseconds settled{kSettledWait};
    std::chrono::milliseconds connections{kConnectionsWait};
    std::chrono::milliseconds start{kStartWait};
    std::chrono::milliseconds record{kRecordWait};  // for the record STARTED, while the disk does not take it
  };
  struct Environment {
    MakeGuest make_guest;
    Journal* journal = nullptr;  // outlives the session: a question after run() may still write the refusal
    StepHook on_step;
    std::string boot_id;
    std::function<void(Guest&)> on_started;  // the guest runs: take it over (called before the record is written)
    Waits waits{};                           // shorter in tests
  };
  DestinationSession(v1::PeerHello hello, std::unique_ptr<net::Stream> control, Environment environment);
  ~DestinationSession();
  DestinationSession(const DestinationSession&) = delete;
  DestinationSession& operator=(const DestinationSession&) = delete;
  DestinationSession(DestinationSession&&) = delete;
  DestinationSession& operator=(DestinationSession&&) = delete;

  /// The running guest, or why there is none. On an error the replica is gone and, where READY was said, durably
  /// refused.
  Result<std::unique_ptr<Guest>> run();

  /// After run(), once: the connection, on which WAY_BACK is due (way_back.h); null when the source expects none.
  [[nodiscard]] std::unique_ptr<net::Stream> take_way_back();
  /// After run(): the pages that came, and the digest of what they differ from.
  [[nodiscard]] memory::Bitmap arrived() const;
  [[nodiscard]] memory::Digest base_digest() const {
    return Id::from_bytes(hello_.template_().digest()).value_or(Id{});
  }
  /// A data connection that the listener accepted; refused when it is unexpected. Thread: any.
  Status add_connection(DataConnection connection);
  /// For a peer's query: refuses the session durably if COMMIT has not come, or if the start failed. Says "started"
  /// only once the guest runs, and waits a little for that; "unknown" while neither is certain. Thread: any, also after
  /// run().
  v1::SessionAnswer answer();
  /// Before COMMIT ends the session as refused; after it has no effect. Thread: any.
  void cancel();
  [[nodiscard]] Id id() const { return session_; }

 private:
  Status prepare();
  void populate_expected();
  Status collect_connections();
  Result<DataConnection> next_connection(const Deadline& deadline);
  Status receive_all();
  Status load();
  void note_way_back();
  Status wait_for_commit();
  Status start();
  void settle();
  enum class Start { kOpen, kRunning, kFailed };
  void start_ended(Start how);
  void close_data();
  void cancel_data();  // thread: any
  v1::SessionAnswer refused_answer();
  Status step(std::string_view name);
  Status advance(DestinationEvent event);
  void refuse(const Error& error);
  Status write_record(v1::SessionOutcome outcome);
  Status say(v1::PeerKind kind);
  Result<v1::PeerMessage> hear(v1::PeerKind wanted, const Deadline& deadline);
  void phase_done(std::string_view name);

  const v1::PeerHello hello_;
  const Id session_;
  std::unique_ptr<net::Stream> control_;
  Environment environment_;
  Deadline deadline_;
  DestinationState state_ = DestinationState::kPreparing;
  Verdict verdict_;
  Mailbox<DataConnection> connections_{kDataConnectionsQueued};
  std::unique_ptr<Guest> guest_;
  std::mutex data_mutex_;                           // cancel() against collect_connections()
  std::vector<std::unique_ptr<net::Stream>> data_;  // data_mutex_ while growing
  std::atomic<bool> cancelled_{false};
  std::vector<std::unique_ptr<PageReceiver>> receivers_;
  v1::PeerMessage state_message_;
  bool agrees_ = false;  // both sides: WAY_BACK follows
  std::vector<v1::Timing> timings_;
  SteadyTime phase_began_;
  std::optional<ScopedFifo> pause_begins_;  // this thread's waits are the guest's downtime from here to STARTED
  std::mutex record_mutex_;                 // the record is written by the session and by answer()
  std::mutex start_mutex_;
  std::condition_variable start_changed_;
  Start start_ = Start::kOpen;  // start_mutex_
};

}  // namespace fvmm::migration
