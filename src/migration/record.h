// The durable record of one hand-over on one side: who may run the VM after a crash. docs/handover.md.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>

#include "base/id.h"
#include "base/result.h"
#include "proto/state.pb.h"

namespace fvmm::migration {

inline constexpr std::string_view kSessionRecordName = "session.pb";
inline constexpr std::chrono::seconds kRecordWait{5};              // for a last record that the disk does not take
inline constexpr std::chrono::milliseconds kRecordPauseFirst{50};  // between two attempts; then twice as long each time
inline constexpr std::chrono::milliseconds kRecordPauseLast{1000};

/// Where a session's record is kept. A file in production; in memory, or failing, in tests. Owner: the session's
/// thread.
class Journal {
 public:
  Journal() = default;
  virtual ~Journal() = default;
  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;
  Journal(Journal&&) = delete;
  Journal& operator=(Journal&&) = delete;
  /// Durable when it returns OK; on error the former record stands.
  virtual Status write(const v1::SessionRecord& record) = 0;
};

/// "session.pb" in the VM's directory, replaced whole (write, fsync, rename, fsync of the directory).
class FileJournal final : public Journal {
 public:
  explicit FileJournal(std::filesystem::path vm_directory) : path_(std::move(vm_directory) / kSessionRecordName) {}
  Status write(const v1::SessionRecord& record) override;

 private:
  std::filesystem::path path_;
};

/// Writes a session's last record, and while that fails again, with growing pauses, for as long as `wait`: who is asked
/// later has then more than this process's memory to go by. The last error. Nothing may depend on it: an open record is
/// the safe side.
Status write_last_record(const std::function<Status()>& write, std::chrono::milliseconds wait);

/// kNotFound when there is none; kDataLoss when it cannot be parsed (then the VM may not be started by itself).
Result<v1::SessionRecord> read_session_record(const std::filesystem::path& vm_directory);

}  // namespace fvmm::migration
