#include "daemon/incoming.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "daemon/call_worker.h"
#include "daemon/resolve.h"

namespace fvmm::daemon {
namespace {

v1::SessionAnswer unknown(std::string detail) {
  v1::SessionAnswer answer;
  answer.set_outcome("unknown");
  answer.set_detail(std::move(detail));
  return answer;
}

v1::SessionAnswer ask_worker(const WorkerProcess& worker, const Id& session, const Deadline& deadline) {
  v1::SessionQuery query;
  query.set_session(session.raw());
  auto answer = worker.client()->ask_session(query, deadline);
  return answer ? std::move(*answer) : unknown(answer.error().message());
}

/// What the session.pb of any VM here says. `blind`: one of them could not tell its session yet, or can no longer.
struct RecordScan {
  std::optional<v1::SessionRecord> record;
  std::shared_ptr<WorkerProcess> worker;
  bool blind = false;
};
RecordScan scan_records(const Registry& registry, const Id& session) {
  RecordScan scan;
  for (const VmView& vm : registry.list()) {
    auto record = read_session(vm.directory);
    if (record && record->session() == session.raw()) return {std::move(record), vm.worker, false};
    scan.blind |= record ? record->session().empty() : vm.state() == v1::VM_INCOMING;
  }
  return scan;
}

}  // namespace

IncomingSessions::Admitted::~Admitted() {
  if (table_ == nullptr) return;
  const std::lock_guard lock(table_->mutex_);
  table_->live_.erase(session_);
  table_->changed_.notify_all();
}

void IncomingSessions::Admitted::assign(std::shared_ptr<WorkerProcess> worker) {
  const std::lock_guard lock(table_->mutex_);
  table_->live_[session_] = std::move(worker);
  table_->changed_.notify_all();
}

Result<IncomingSessions::Admitted> IncomingSessions::begin(const Id& session) {
  const std::lock_guard lock(mutex_);
  if (live_.contains(session)) return Error(Errc::kAlreadyExists, "this session is under way");
  if (live_.size() >= kIncomingMax) {
    return Error(Errc::kResourceExhausted, fmt::format("{} migrations are coming in, the limit", kIncomingMax));
  }
  for (SessionLedger* ledger : {&refused_, &settled_}) {
    if (FVMM_TRY(ledger->find(session))) return Error(Errc::kAborted, "this session has ended before");
  }
  live_.emplace(session, nullptr);
  return Admitted(*this, session);
}

Result<std::shared_ptr<WorkerProcess>> IncomingSessions::wait_worker(const Id& session, const Deadline& deadline) {
  std::unique_lock lock(mutex_);
  const auto ready = [&] {
    const auto it = live_.find(session);
    return it != live_.end() && it->second != nullptr;
  };
  if (!changed_.wait_until(lock, deadline.at(), ready)) {
    return Error(Errc::kNotFound, fmt::format("no migration with session {} is coming in", session.hex()));
  }
  return live_.at(session);
}

v1::SessionAnswer IncomingSessions::answer(const Id& session, const Deadline& deadline) {
  if (auto live = answer_live(session, deadline)) return *live;
  const RecordScan scan = scan_records(registry_, session);
  if (scan.record) {
    // While it is open, a destination's worker decides the race between COMMIT and this question; a source's knows what
    // its disk did not take.
    const bool ask = scan.record->outcome() == v1::OUTCOME_OPEN && scan.worker;
    return ask ? ask_worker(*scan.worker, session, deadline) : answer_of(*scan.record);
  }
  for (SessionLedger* ledger : {&settled_, &refused_}) {
    const auto found = ledger->find(session);
    if (!found) return unknown(found.error().message());
    if (*found) return answer_of(**found);
  }
  if (scan.blind) return unknown("a VM is coming in whose session is not known yet; ask again");
  auto refused = refuse_unknown(session);
  return refused ? std::move(*refused) : unknown(refused.error().message());
}

std::optional<v1::SessionAnswer> IncomingSessions::answer_live(const Id& session, const Deadline& deadline) {
  std::shared_ptr<WorkerProcess> worker;
  {
    const std::lock_guard lock(mutex_);
    const auto it = live_.find(session);
    if (it == live_.end()) return std::nullopt;
    worker = it->second;
  }
  if (!worker) return unknown("the session is being admitted; ask again");
  return ask_worker(*worker, session, deadline);
}

Result<v1::SessionAnswer> IncomingSessions::refuse_unknown(const Id& session) {
  // Under the lock, fsync and all: a session admitted meanwhile must see the refusal, or be seen here.
  const std::lock_guard lock(mutex_);
  if (live_.contains(session)) return unknown("the session is being admitted; ask again");
  v1::SessionRecord record;
  record.set_session(session.raw());
  record.set_role(v1::ROLE_MAY_START);
  record.set_outcome(v1::OUTCOME_REFUSED);
  FVMM_TRY(refused_.record(record));
  spdlog::info("session {} is unknown here and refused for good", session.hex());
  v1::SessionAnswer answer = answer_of(record);
  answer.set_detail("the destination does not know this session and will never start it");
  return answer;
}

}  // namespace fvmm::daemon
