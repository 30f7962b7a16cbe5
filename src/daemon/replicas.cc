#include "daemon/replicas.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <vector>

#include "base/file.h"
#include "base/units.h"
#include "daemon/checks.h"
#include "daemon/records.h"

namespace fvmm::daemon {
namespace fs = std::filesystem;
namespace {

constexpr const char* kRecordKind = ".pb";
constexpr const char* kStopKind = ".stop";

Error no_longer(const v1::ReplicaStop& stop) {
  return {Errc::kNotFound,
          fmt::format("the replication of VM {} to this host has been ended at {}: no replica is kept here",
                      stop.name(), stop.peer())};
}

}  // namespace

Result<Replicas> Replicas::open(fs::path directory, std::uint64_t staging_bytes_max) {
  FVMM_TRY(make_directories(directory), "replica records");
  Replicas table(std::move(directory), staging_bytes_max);
  std::error_code error;
  for (fs::directory_iterator it(table.directory_, error), end; !error && it != end; it.increment(error)) {
    FVMM_TRY(table.load(it->path()));
  }
  if (error) return Error(Errc::kIo, table.directory_.string() + ": " + error.message());
  // Who wrote a record may have died before its name was safe, and one that is here is not written again.
  FVMM_TRY(fsync_path(table.directory_), "replica records");
  return table;
}

Status Replicas::load(const fs::path& file) {
  const bool stop = file.extension() == kStopKind;
  if (!stop && file.extension() != kRecordKind) {  // a temporary file of a write that did not end
    std::error_code ignored;
    fs::remove(file, ignored);
    return {};
  }
  const auto content = FVMM_TRY(read_file(file, kRecordBytesMax));
  v1::ReplicaRecord record;
  v1::ReplicaStop ended;
  if (stop ? !ended.ParseFromString(content) : !record.ParseFromString(content)) {
    return Error(Errc::kDataLoss,
                 fmt::format("{} is not a replica record: without it nobody knows who may run that VM", file.string()));
  }
  Entry& entry = state_->entries[FVMM_TRY(Id::from_bytes(stop ? ended.vm() : record.vm()), file.string())];
  if (stop) {
    entry.stop = std::move(ended);
  } else {
    entry.record = std::move(record);
  }
  return {};
}

fs::path Replicas::file_of(const Id& vm, const char* kind) const {
  return directory_ / (vm.hex() + kind);
}

Status Replicas::write(const Id& vm, const v1::ReplicaRecord& record) const {
  return replace_file(file_of(vm, kRecordKind), record.SerializeAsString());
}

// The connection that serves the VM is cut, and its end waited for.
Status Replicas::end_session(const Id& vm, const std::string& name, std::unique_lock<std::mutex>& lock) {
  const auto idle = [&] {
    const auto found = state_->entries.find(vm);
    return found == state_->entries.end() || found->second.stream == nullptr;
  };
  if (idle()) return {};
  state_->entries[vm].stream->cancel();
  if (state_->ended.wait_for(lock, kReplicaTakeoverWait, idle)) return {};
  return Error(Errc::kDeadlineExceeded, fmt::format("an older connection of VM {} does not end", name));
}

// Each VM alone would fit: what counts is all of them, and each at its largest.
Status Replicas::check_room(const Id& vm, const v1::VmConfig& config) const {
  std::size_t records = 0;
  std::size_t sessions = 0;
  std::uint64_t promised = 0;
  for (const auto& [id, entry] : state_->entries) {
    if (id == vm) continue;
    if (!entry.record.vm().empty()) ++records;
    if (entry.stream == nullptr) continue;
    ++sessions;
    promised += entry.record.config().memory_bytes();
  }
  if (records >= kReplicasMax) {
    return Error(Errc::kResourceExhausted,
                 fmt::format("{} VMs have been replicated to this host, the limit", kReplicasMax));
  }
  if (promised + config.memory_bytes() <= staging_bytes_max_) return {};
  return Error(Errc::kResourceExhausted,
               fmt::format("generations that come in may take {} of this host's memory (--replica-staging), and {} of "
                           "that is for {} other VMs; VM {} has {}: raise the limit of this host, or end another "
                           "replication to it",
                           format_bytes(staging_bytes_max_), format_bytes(promised), sessions, config.name(),
                           format_bytes(config.memory_bytes())));
}

Result<Replicas::Session> Replicas::begin(const v1::PeerHello& hello, net::Stream& stream) {
  const Id vm = FVMM_TRY(Id::from_bytes(hello.vm().id()), "VM id");
  std::unique_lock lock(state_->mutex);
  FVMM_TRY(end_session(vm, hello.vm().name(), lock));
  FVMM_TRY(check_room(vm, hello.vm()));
  Entry& entry = state_->entries[vm];
  if (entry.stop) {
    const v1::ReplicaStop& stop = *entry.stop;
    const bool same = !hello.replication().empty() && hello.replication() == stop.replication();
    if (same || hello.fencing_token() < stop.fencing_token()) {
      return Error(Errc::kAborted,
                   fmt::format("the replication of VM {} to this host has been ended at {} under "
                               "fencing token {}: this one, under {}, is older",
                               hello.vm().name(), stop.peer(), stop.fencing_token(), hello.fencing_token()));
    }
  }
  v1::ReplicaRecord record = entry.record;
  record.set_vm(vm.raw());
  record.set_name(hello.vm().name());
  record.set_peer(hello.from());
  *record.mutable_config() = hello.vm();
  if (record.SerializeAsString() != entry.record.SerializeAsString()) FVMM_TRY(write(vm, record));
  entry.record = std::move(record);
  entry.replication = hello.replication();
  entry.stream = &stream;
  return Session(*this, vm);
}

Replicas::Session::~Session() {
  if (table_ == nullptr) return;
  const std::lock_guard lock(table_->state_->mutex);
  table_->state_->entries[vm_].stream = nullptr;
  table_->state_->ended.notify_all();
}

std::shared_ptr<DeadlineMutex> Replicas::gate_of(const Id& vm) {
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

Result<std::uint64_t> Replicas::recover(const Id& vm, const std::function<Result<std::uint64_t>()>& ready,
                                        const Deadline& deadline) {
  const std::string name = FVMM_TRY(find(vm)).name();
  const auto gate = gate_of(vm);
  const std::unique_lock sealing(*gate, deadline.at());
  if (!sealing) {
    return Error(Errc::kDeadlineExceeded,
                 fmt::format("a generation of VM {} is still being sealed here, or its replica is being dropped: the "
                             "right to run it was not taken; recover it again",
                             name));
  }
  const std::uint64_t token_seen = FVMM_TRY(ready());
  const std::lock_guard lock(state_->mutex);
  if (deadline.passed()) {
    return Error(Errc::kDeadlineExceeded,
                 fmt::format("VM {} could not be made ready to run here in time: the right to run it was not taken; "
                             "recover it again",
                             name));
  }
  v1::ReplicaRecord record = FVMM_TRY(find_locked(vm));
  Entry& entry = state_->entries[vm];
  record.set_fencing_token(std::max(record.fencing_token(), token_seen) + 1);
  record.set_recovered(true);
  FVMM_TRY(write(vm, record), "record the recovery");
  entry.record = record;
  if (entry.stream != nullptr) entry.stream->cancel();
  return record.fencing_token();
}

// Durable before the generations go: whatever is cut short here is repeated, because the source has had no answer.
Result<Replicas::Forgotten> Replicas::forget(const v1::PeerHello& hello, const std::function<void()>& drop) {
  const Id vm = FVMM_TRY(Id::from_bytes(hello.vm().id()), "VM id");
  const auto superseded = [&](const Entry& entry) {
    return !entry.replication.empty() && entry.replication != hello.replication();
  };
  {
    std::unique_lock lock(state_->mutex);
    if (superseded(state_->entries[vm])) return Forgotten::kSuperseded;
    FVMM_TRY(end_session(vm, hello.vm().name(), lock));
  }
  const auto gate = gate_of(vm);
  const std::lock_guard sealing(*gate);
  {
    const std::lock_guard lock(state_->mutex);
    const Entry& entry = state_->entries[vm];
    if (superseded(entry)) return Forgotten::kSuperseded;
    if (entry.record.fencing_token() >= hello.fencing_token()) return Forgotten::kRecovered;
    if (entry.stream != nullptr) return Error(Errc::kUnavailable, "the VM's generations come in again just now");
    FVMM_TRY(remember_stop(vm, hello));
  }
  drop();
  const std::lock_guard lock(state_->mutex);
  Entry& entry = state_->entries[vm];
  if (entry.record.fencing_token() != 0) return Forgotten::kYes;  // still says who is fenced
  if (entry.stream != nullptr) return Forgotten::kYes;            // a later replication began: the record is its own
  FVMM_TRY(remove_file(file_of(vm, kRecordKind)));
  entry.record.Clear();
  return Forgotten::kYes;
}

Status Replicas::remember_stop(const Id& vm, const v1::PeerHello& hello) {
  std::vector<std::pair<std::int64_t, Id>> ended;  // and nothing else is known of those VMs
  for (const auto& [id, entry] : state_->entries) {
    if (entry.stop && entry.record.vm().empty() && id != vm) ended.emplace_back(entry.stop->realtime_ns(), id);
  }
  if (ended.size() >= kReplicaStopsMax) {
    const Id oldest = std::ranges::min(ended).second;
    FVMM_TRY(remove_file(file_of(oldest, kStopKind)));
    Entry& entry = state_->entries[oldest];
    entry.stop.reset();
    if (entry.stream == nullptr && entry.gate.use_count() == 1) state_->entries.erase(oldest);
  }
  v1::ReplicaStop stop;
  stop.set_vm(vm.raw());
  stop.set_name(hello.vm().name());
  stop.set_peer(hello.from());
  stop.set_replication(hello.replication());
  stop.set_fencing_token(hello.fencing_token());
  stop.set_realtime_ns(system_clock().realtime_ns());
  FVMM_TRY(replace_file(file_of(vm, kStopKind), stop.SerializeAsString()), "record the end of the replication");
  state_->entries[vm].stop = std::move(stop);
  return {};
}

Result<v1::ReplicaRecord> Replicas::find(const Id& vm) const {
  const std::lock_guard lock(state_->mutex);
  return find_locked(vm);
}

Result<v1::ReplicaRecord> Replicas::find_locked(const Id& vm) const {
  const auto found = state_->entries.find(vm);
  if (found != state_->entries.end() && !found->second.record.vm().empty()) return found->second.record;
  if (found != state_->entries.end() && found->second.stop) return no_longer(*found->second.stop);
  return Error(Errc::kNotFound, "that VM was never replicated to this host");
}

Result<v1::ReplicaRecord> Replicas::find(const std::string& name) const {
  const std::lock_guard lock(state_->mutex);
  std::vector<const v1::ReplicaRecord*> found;
  const v1::ReplicaStop* ended = nullptr;
  for (const auto& [id, entry] : state_->entries) {
    if (!entry.record.vm().empty() && (entry.record.name() == name || id.hex() == name)) found.push_back(&entry.record);
    if (entry.stop && (entry.stop->name() == name || id.hex() == name)) ended = &*entry.stop;
  }
  if (found.size() == 1) return *found.front();
  if (found.empty() && ended != nullptr) return no_longer(*ended);
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
