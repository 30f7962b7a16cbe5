#include "daemon/replicas.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <vector>

#include "base/file.h"
#include "daemon/checks.h"
#include "daemon/records.h"

namespace fvmm::daemon {
namespace fs = std::filesystem;

Result<Replicas> Replicas::open(fs::path directory) {
  FVMM_TRY(make_directories(directory), "replica records");
  Replicas table(std::move(directory));
  std::error_code error;
  for (fs::directory_iterator it(table.directory_, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() != ".pb") {  // a temporary file of a write that did not end
      std::error_code ignored;
      fs::remove(it->path(), ignored);
      continue;
    }
    v1::ReplicaRecord record;
    const auto content = FVMM_TRY(read_file(it->path(), kRecordBytesMax));
    if (!record.ParseFromString(content)) {
      return Error(
          Errc::kDataLoss,
          fmt::format("{} is not a replica record: without it nobody knows who may run that VM", it->path().string()));
    }
    table.state_->entries[FVMM_TRY(Id::from_bytes(record.vm()), it->path().string())].record = std::move(record);
  }
  if (error) return Error(Errc::kIo, table.directory_.string() + ": " + error.message());
  // Who wrote a record may have died before its name was safe, and one that is here is not written again.
  FVMM_TRY(fsync_path(table.directory_), "replica records");
  return table;
}

Status Replicas::write(const Id& vm, const v1::ReplicaRecord& record) const {
  return replace_file(directory_ / (vm.hex() + ".pb"), record.SerializeAsString());
}

Result<Replicas::Session> Replicas::begin(const v1::PeerHello& hello, net::Stream& stream) {
  const Id vm = FVMM_TRY(Id::from_bytes(hello.vm().id()), "VM id");
  std::unique_lock lock(state_->mutex);
  if (!state_->entries.contains(vm) && state_->entries.size() >= kReplicasMax) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("{} VMs have been replicated to this host, the limit", kReplicasMax));
  }
  const auto idle = [&] { return state_->entries[vm].stream == nullptr; };
  if (!idle()) {
    state_->entries[vm].stream->cancel();
    if (!state_->ended.wait_for(lock, kReplicaTakeoverWait, idle)) {
      return Error(Errc::kDeadlineExceeded,
                   fmt::format("an older connection of VM {} does not end", hello.vm().name()));
    }
  }
  Entry& entry = state_->entries[vm];
  v1::ReplicaRecord record = entry.record;
  record.set_vm(vm.raw());
  record.set_name(hello.vm().name());
  record.set_peer(hello.from());
  *record.mutable_config() = hello.vm();
  if (record.SerializeAsString() != entry.record.SerializeAsString()) FVMM_TRY(write(vm, record));
  entry.record = std::move(record);
  entry.stream = &stream;
  return Session(*this, vm);
}

Replicas::Session::~Session() {
  if (table_ == nullptr) return;
  const std::lock_guard lock(table_->state_->mutex);
  table_->state_->entries[vm_].stream = nullptr;
  table_->state_->ended.notify_all();
}

std::shared_ptr<std::mutex> Replicas::gate_of(const Id& vm) {
  const std::lock_guard lock(state_->mutex);
  return state_->entries[vm].gate;
}

// A gate for each VM: a large generation of one holds up no other.
bool Replicas::unless_recovered(const Id& vm, std::uint64_t token, const std::function<void()>& work) {
  const auto gate = gate_of(vm);
  const std::lock_guard sealing(*gate);
  {
    const std::lock_guard lock(state_->mutex);
    if (token <= state_->entries[vm].record.fencing_token()) return false;
  }
  work();
  return true;
}

Result<std::uint64_t> Replicas::recover(const Id& vm, std::uint64_t token_seen) {
  FVMM_TRY(find(vm));
  const auto gate = gate_of(vm);
  const std::lock_guard sealing(*gate);
  const std::lock_guard lock(state_->mutex);
  Entry& entry = state_->entries[vm];
  v1::ReplicaRecord record = entry.record;
  record.set_fencing_token(std::max(record.fencing_token(), token_seen) + 1);
  record.set_recovered(true);
  FVMM_TRY(write(vm, record), "record the recovery");
  entry.record = record;
  if (entry.stream != nullptr) entry.stream->cancel();
  return record.fencing_token();
}

Result<v1::ReplicaRecord> Replicas::find(const Id& vm) const {
  const std::lock_guard lock(state_->mutex);
  const auto found = state_->entries.find(vm);
  if (found == state_->entries.end() || found->second.record.vm().empty()) {
    return Error(Errc::kNotFound, "that VM was never replicated to this host");
  }
  return found->second.record;
}

Result<v1::ReplicaRecord> Replicas::find(const std::string& name) const {
  const std::lock_guard lock(state_->mutex);
  std::vector<const v1::ReplicaRecord*> found;
  for (const auto& [id, entry] : state_->entries) {
    if (entry.record.name() == name || id.hex() == name) found.push_back(&entry.record);
  }
  if (found.size() == 1) return *found.front();
  if (found.empty())
    return Error(Errc::kNotFound, fmt::format("no VM named {} was ever replicated to this host", name));
  std::string which;
  for (const auto* record : found) {
    which += fmt::format(" {} (from {})", Id::from_bytes(record->vm()).value_or(Id{}).hex(), record->peer());
  }
  return Error(Errc::kFailedPrecondition,
               fmt::format("several VMs named {} were replicated to this host; name one by its id:{}", name, which));
}

}  // namespace fvmm::daemon
