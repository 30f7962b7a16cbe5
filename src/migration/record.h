// The durable record of one hand-over on one side: who may run the VM after a crash. docs/handover.md.
#pragma once

#include <filesystem>

#include "base/id.h"
#include "base/result.h"
#include "proto/state.pb.h"

namespace fvmm::migration {

inline constexpr std::string_view kSessionRecordName = "session.pb";

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

/// kNotFound when there is none; kDataLoss when it cannot be parsed (then the VM may not be started by itself).
Result<v1::SessionRecord> read_session_record(const std::filesystem::path& vm_directory);

}  // namespace fvmm::migration
