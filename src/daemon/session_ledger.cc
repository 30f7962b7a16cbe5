#include "daemon/session_ledger.h"

#include <fmt/format.h>

#include <chrono>

#include "base/file.h"
#include "daemon/records.h"

namespace fvmm::daemon {

namespace fs = std::filesystem;

Result<std::unique_ptr<SessionLedger>> SessionLedger::open(fs::path directory, std::size_t entries_max) {
  FVMM_TRY(make_directories(directory), "session ledger");
  FVMM_TRY(fsync_path(directory), "session ledger");  // who wrote an entry may have died before its name was safe
  std::unique_ptr<SessionLedger> ledger(new SessionLedger(std::move(directory), entries_max));
  ledger->entries_ = ledger->count();
  return ledger;
}

std::size_t SessionLedger::count() const {
  std::size_t entries = 0;
  std::error_code error;
  for (fs::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) ++entries;
  return entries;
}

Status SessionLedger::record(const v1::SessionRecord& session) {
  const Id id = FVMM_TRY(Id::from_bytes(session.session()), "session ledger");
  const fs::path file = directory_ / id.hex();
  const std::lock_guard lock(mutex_);
  std::error_code error;
  const bool present = fs::exists(file, error);
  if (!present && entries_ >= entries_max_) FVMM_TRY(make_room());
  FVMM_TRY(replace_file(file, session.SerializeAsString()), "session ledger");
  if (!present) ++entries_;
  return {};
}

Status SessionLedger::make_room() {
  const auto oldest_kept = fs::file_time_type::clock::now() - std::chrono::hours(24 * kLedgerDaysKept);
  std::error_code error;
  for (fs::directory_iterator it(directory_, error), end; !error && it != end; it.increment(error)) {
    std::error_code entry_error;
    const auto written = fs::last_write_time(it->path(), entry_error);
    if (!entry_error && written < oldest_kept) fs::remove(it->path(), entry_error);
  }
  entries_ = count();
  if (entries_ < entries_max_) return {};
  return Error(Errc::kResourceExhausted, fmt::format("{} holds {} sessions younger than {} days, its limit",
                                                     directory_.string(), entries_, kLedgerDaysKept));
}

Result<std::optional<v1::SessionRecord>> SessionLedger::find(const Id& session) const {
  const fs::path file = directory_ / session.hex();
  auto content = read_file(file, kRecordBytesMax);
  if (!content && content.error().code() == Errc::kNotFound) return std::optional<v1::SessionRecord>();
  if (!content) return std::move(content.error());
  v1::SessionRecord record;
  if (!record.ParseFromString(*content) || record.session() != session.raw()) {
    return Error(Errc::kDataLoss, fmt::format("{} is not a session record", file.string()));
  }
  return std::optional(std::move(record));
}

}  // namespace fvmm::daemon
