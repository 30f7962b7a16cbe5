#include "migration/record.h"

#include "base/file.h"

namespace fvmm::migration {
namespace {

constexpr std::uint64_t kRecordBytesMax = 64 * 1024;

}  // namespace

Status FileJournal::write(const v1::SessionRecord& record) {
  return replace_file(path_, record.SerializeAsString());
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
