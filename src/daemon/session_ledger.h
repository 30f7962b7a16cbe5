// Hand-overs of the past, one durable file each: what this host answers when a peer asks about a session long after the
// VM's own session.pb has been overwritten by the next one. Owner: the daemon. Thread: any.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>

#include "base/id.h"
#include "base/result.h"
#include "proto/state.pb.h"

namespace fvmm::daemon {

inline constexpr std::size_t kSettledSessionsMax = 65536;
inline constexpr std::size_t kRefusedSessionsMax =
    4096;                                   // refusals recorded because a peer asked about a session unknown here
inline constexpr int kLedgerDaysKept = 30;  // entries younger than this are never removed to make room

class SessionLedger {
 public:
  /// Creates the directory if needed and counts what is there.
  static Result<std::unique_ptr<SessionLedger>> open(std::filesystem::path directory, std::size_t entries_max);

  /// Durable when it returns; the same session again replaces its entry. kResourceExhausted when full of young entries.
  Status record(const v1::SessionRecord& session);
  /// Nothing when never recorded; kDataLoss when the entry cannot be read.
  Result<std::optional<v1::SessionRecord>> find(const Id& session) const;

 private:
  SessionLedger(std::filesystem::path directory, std::size_t entries_max)
      : directory_(std::move(directory)), entries_max_(entries_max) {}
  Status make_room();  // mutex_ held
  [[nodiscard]] std::size_t count() const;

  const std::filesystem::path directory_;
  const std::size_t entries_max_;
  std::mutex mutex_;
  std::size_t entries_ = 0;  // mutex_
};

}  // namespace fvmm::daemon
