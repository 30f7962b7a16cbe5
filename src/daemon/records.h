// The durable records of one VM, as files in its directory, and what they say when no worker lives.
// Thread: any; a VM's vm.pb and previous.pb are written only by the holder of its Claim, session.pb by its worker while
// it lives.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "base/id.h"
#include "base/result.h"
#include "base/units.h"
#include "proto/state.pb.h"

namespace fvmm::daemon {

inline constexpr std::uint64_t kRecordBytesMax = 64 * kKiB;

inline constexpr const char* kVmRecordFile = "vm.pb";
inline constexpr const char* kSessionFile = "session.pb";
inline constexpr const char* kPreviousFile =
    "previous.pb";  // the MOVED record that an incoming replica stands in front of
inline constexpr const char* kReplicaStopFile = "replica-stop.pb";  // what its end will be told the peer with
inline constexpr const char* kReplicaFile = "replica.pb";           // where the VM is, or was last, replicated to
inline constexpr const char* kSerialLogFile = "serial.log";
inline constexpr const char* kWorkerLogFile = "worker.log";  // the last lines of a worker that died

/// Nothing when the file is absent; kDataLoss when it is not such a record.
Result<std::optional<v1::VmRecord>> read_vm_record(const std::filesystem::path& file);
Status write_vm_record(const std::filesystem::path& file, const v1::VmRecord& record);

/// The hand-over record in a VM's directory. An unreadable one is reported as open with role NONE: nothing may start
/// the VM.
std::optional<v1::SessionRecord> read_session(const std::filesystem::path& vm_directory);
Status write_session(const std::filesystem::path& vm_directory, const v1::SessionRecord& session);
/// A hand-over that nobody has settled; also an unreadable record.
inline bool is_open(const std::optional<v1::SessionRecord>& session) {
  return session && session->outcome() == v1::OUTCOME_OPEN;
}

/// What a VM is when no worker of it lives (daemon start, or its worker just died).
struct WithoutWorker {
  v1::VmState state = v1::VM_STATE_NONE;
  std::string detail;
  bool drop_replica = false;  // never became a VM here: restore previous.pb, or forget it
};
/// Pure. An open session wins over everything: the VM is unsettled. `death` says how the worker ended, empty if
/// unknown.
WithoutWorker derive_without_worker(const v1::VmRecord& record, const std::optional<v1::SessionRecord>& session,
                                    const std::string& death);

/// "VM_RUNNING" -> "running", for messages.
std::string state_text(v1::VmState state);

}  // namespace fvmm::daemon
