#include "daemon/records.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/file.h"

namespace fvmm::daemon {
namespace {

bool active(v1::VmState state) {
  return state == v1::VM_RUNNING || state == v1::VM_PAUSED || state == v1::VM_MIGRATING || state == v1::VM_UNSETTLED;
}

WithoutWorker unsettled(const v1::SessionRecord& session) {
  const std::string peer = session.peer().empty() ? "its peer" : session.peer();
  return {v1::VM_UNSETTLED,
          fmt::format("a hand-over {} {} has no answer; run \"fvmmctl migrate resolve\" once {} can be reached",
                      session.role() == v1::ROLE_MAY_START ? "from" : "to", peer, peer),
          false};
}

WithoutWorker lost(const std::string& death) {
  return {v1::VM_LOST,
          fmt::format("{}; its memory is gone: start it again, or recover it from a template",
                      death.empty() ? "its worker died or the host rebooted" : death),
          false};
}

}  // namespace

Result<std::optional<v1::VmRecord>> read_vm_record(const std::filesystem::path& file) {
  auto content = read_file(file, kRecordBytesMax);
  if (!content && content.error().code() == Errc::kNotFound) return std::optional<v1::VmRecord>();
  if (!content) return std::move(content.error());
  v1::VmRecord record;
  if (!record.ParseFromString(*content) || record.config().id().size() != sizeof(Id)) {
    return Error(Errc::kDataLoss, fmt::format("{} is not a VM record", file.string()));
  }
  return std::optional(std::move(record));
}

Status write_vm_record(const std::filesystem::path& file, const v1::VmRecord& record) {
  return replace_file(file, record.SerializeAsString());
}

std::optional<v1::SessionRecord> read_session(const std::filesystem::path& vm_directory) {
  const auto content = read_file(vm_directory / kSessionFile, kRecordBytesMax);
  v1::SessionRecord session;
  if (!content) {
    if (content.error().code() == Errc::kNotFound) return std::nullopt;
    return session;
  }
  if (!session.ParseFromString(*content) || session.session().size() != sizeof(Id)) return v1::SessionRecord();
  return session;
}

Status write_session(const std::filesystem::path& vm_directory, const v1::SessionRecord& session) {
  return replace_file(vm_directory / kSessionFile, session.SerializeAsString());
}

WithoutWorker derive_without_worker(const v1::VmRecord& record, const std::optional<v1::SessionRecord>& session,
                                    const std::string& death) {
  if (is_open(session)) return unsettled(*session);
  const bool started = session && session->outcome() == v1::OUTCOME_STARTED;
  const bool came_in = session && session->role() == v1::ROLE_MAY_START;
  if (record.state() == v1::VM_INCOMING) {
    if (came_in && started) return lost(death);
    return {record.state(), "", true};
  }
  if (!active(record.state())) return {record.state(), record.detail(), false};
  if (session && !came_in && started) return {v1::VM_MOVED, "", false};
  if (record.state() == v1::VM_UNSETTLED && came_in && !started) return {record.state(), "", true};
  return lost(death);
}

std::string state_text(v1::VmState state) {
  std::string text = v1::VmState_Name(state);
  if (text.starts_with("VM_")) text.erase(0, 3);
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

}  // namespace fvmm::daemon
