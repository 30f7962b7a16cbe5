#include "migration/record.h"

#include <algorithm>
#include <thread>

#include "base/clock.h"
#include "base/file.h"

namespace fvmm::migration {
namespace {

constexpr std::uint64_t kRecordBytesMax = 64 * 1024;

}  // namespace

Status FileJournal::write(const v1::SessionRecord& record) {
  return replace_file(path_, record.SerializeAsString());
}

Status write_last_record(const std::function<Status()>& write, std::chrono::milliseconds wait) {
  const Deadline limit = Deadline::after(wait);
  std::chrono::milliseconds pause = kRecordPauseFirst;
  for (;;) {
    Status written = write();
    if (written || limit.passed()) return written;
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(pause, limit.left()));
    pause = std::min(pause * 2, kRecordPauseLast);
  }
}

Result<v1::SessionRecord> read_session_record(const std::filesystem::path& vm_directory) {
  const auto path = vm_directory / kSessionRecordName;
  const std::string bytes = FVMM_TRY(read_file(path, kRecordBytesMax));
  v1::SessionRecord record;
  if (!record.ParseFromString(bytes) || record.session().size() != 16) {
    return Error(Errc::kDataLoss, "session record " + path.string() + " cannot be parsed");
  }
  return record;
}

}  // namespace fvmm::migration
