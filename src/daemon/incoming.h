// The sessions that come in just now, and what this host answers about sessions of any age.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "base/clock.h"
#include "base/id.h"
#include "base/result.h"
#include "daemon/process.h"
#include "daemon/registry.h"
#include "daemon/session_ledger.h"
#include "proto/peer.pb.h"

namespace fvmm::daemon {

inline constexpr std::size_t kIncomingMax = 8;  // migrations coming in at once

/// Live sessions by id. A refusal of an unknown session and the admission of a new one exclude each other here.
/// Owner: the peer listener. Thread: any.
class IncomingSessions {
 public:
  IncomingSessions(Registry& registry, SessionLedger& settled, SessionLedger& refused)
      : registry_(registry), settled_(settled), refused_(refused) {}

  /// A live session, until destroyed.
  class Admitted {
   public:
    Admitted(Admitted&& other) noexcept : table_(std::exchange(other.table_, nullptr)), session_(other.session_) {}
    Admitted& operator=(Admitted&&) = delete;
    Admitted(const Admitted&) = delete;
    Admitted& operator=(const Admitted&) = delete;
    ~Admitted();
    void assign(std::shared_ptr<WorkerProcess> worker);  // wakes data connections and makes questions answerable

   private:
    friend class IncomingSessions;
    Admitted(IncomingSessions& table, const Id& session) : table_(&table), session_(session) {}
    IncomingSessions* table_;
    Id session_;
  };

  /// kAborted when the session was refused or settled before; kAlreadyExists; kResourceExhausted past kIncomingMax.
  Result<Admitted> begin(const Id& session);
  /// The worker of a live session, once it has one. kNotFound when the deadline passes first: a data connection may
  /// arrive before its session does.
  Result<std::shared_ptr<WorkerProcess>> wait_worker(const Id& session, const Deadline& deadline);
  /// What became of the session. A session nobody here knows is refused from now on, durably, before that is said.
  v1::SessionAnswer answer(const Id& session, const Deadline& deadline);

 private:
  [[nodiscard]] std::optional<v1::SessionAnswer> answer_live(const Id& session, const Deadline& deadline);
  Result<v1::SessionAnswer> refuse_unknown(const Id& session);

  Registry& registry_;
  SessionLedger& settled_;
  SessionLedger& refused_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Id, std::shared_ptr<WorkerProcess>> live_;  // mutex_; null until assigned
};

}  // namespace fvmm::daemon
