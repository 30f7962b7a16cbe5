// The VMs of this host: names, ids, durable records, and which worker carries each.
//
// A VM is changed only by the holder of its Claim, one at a time; everything else reads copies (VmView). Records are
// written with fsync outside the lock: the claim, not the lock, is what orders the writes of one VM.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/id.h"
#include "base/result.h"
#include "daemon/process.h"
#include "daemon/records.h"
#include "daemon/session_ledger.h"
#include "proto/state.pb.h"
#include "proto/worker.pb.h"

namespace fvmm::daemon {

inline constexpr std::size_t kVmsMax = 4096;
/// fvmmd's own short claims (noting what a worker reported) are waited for; a user's command is not, it is named.
inline constexpr std::chrono::seconds kInternalClaimWait{5};

/// A copy of what the registry knows of one VM.
struct VmView {
  Id id;
  v1::VmRecord record;
  v1::WorkerInfo info;                    // last heard from its worker; empty without one
  std::shared_ptr<WorkerProcess> worker;  // null: none
  std::string busy;                       // the command that holds the claim; empty: none
  std::filesystem::path directory;
  double start_ms = 0;

  /// The worker's word while it lives, else the record's; unsettled if either says so.
  [[nodiscard]] v1::VmState state() const;
  /// Where it went, from whoever says that it moved; empty otherwise.
  [[nodiscard]] std::string moved_to() const;

 private:
  [[nodiscard]] bool worker_decides() const;
};

v1::VmInfo to_info(const VmView& view);

class Registry;
class Claim;

/// The answer of a command that has done its work: the VM as it is once the claim has ended.
v1::VmInfo to_answer(const Claim& claim);

/// The right to change one VM, until destroyed. A VM that was reserved and never saved vanishes with its claim.
/// Owner: one thread at a time.
class Claim {
 public:
  Claim(Claim&& other) noexcept : registry_(std::exchange(other.registry_, nullptr)), id_(other.id_) {}
  Claim& operator=(Claim&&) = delete;
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;
  ~Claim();

  [[nodiscard]] const Id& id() const { return id_; }
  [[nodiscard]] VmView view() const;
  /// Applies the change to a copy of the record, makes that durable, then known. On error nothing has changed.
  Status change(const std::function<void(v1::VmRecord&)>& edit);
  void attach(std::shared_ptr<WorkerProcess> worker, const v1::WorkerInfo& info, double start_ms);
  /// From here on the worker's reports and its end no longer concern this VM.
  std::shared_ptr<WorkerProcess> detach();
  /// What its worker said now; ignored without a worker.
  void note(const v1::WorkerInfo& info);
  /// Whoever wants the VM meanwhile waits for kInternalClaimWait before it is refused: this claim's end is near, or not
  /// its user's doing.
  void let_others_wait();
  /// Makes the VM's directory, for a worker that starts before the record is saved.
  Status make_directory();
  /// Forgets the VM durably: its directory, name and id are free afterwards. Its session is archived first.
  Status remove();

  /// Copies a settled session.pb into the ledger, before anything overwrites it. kFailedPrecondition when it is open.
  Status archive_session();
  /// An open hand-over whose end the living worker knows, and could not write, is closed with its word. Nothing to do,
  /// and OK, for any other record, without a worker, or while it does not know either.
  Status close_session();
  /// The VM is coming in: keeps a MOVED record aside, writes an INCOMING one.
  Status begin_incoming(const v1::VmRecord& incoming);
  /// It runs here: `edit` as in change(), and the record kept aside is dropped.
  Status finish_incoming(const std::function<void(v1::VmRecord&)>& edit);
  /// It never ran here: the record kept aside comes back, or the VM is removed.
  Status drop_incoming();
  /// What is known without a worker, made durable: unsettled, moved, lost, or dropped (see derive_without_worker).
  Status settle_without_worker(const std::string& death);

 private:
  friend class Registry;
  Claim(Registry& registry, const Id& id) : registry_(&registry), id_(id) {}
  Registry* registry_;
  Id id_;
};

/// Thread: any.
class Registry {
 public:
  enum class Allow { kSettledOnly, kUnsettled };

  /// Reads STATE/vms. A directory without a record is left alone until sweep(): a living worker may be using it.
  static Result<std::unique_ptr<Registry>> open(const std::filesystem::path& state_directory, SessionLedger& ledger);

  [[nodiscard]] std::vector<VmView> list() const;  // sorted by name
  [[nodiscard]] Result<VmView> find(const std::string& name) const;
  [[nodiscard]] std::optional<VmView> find(const Id& id) const;
  /// Of a VM with that id, there or not.
  [[nodiscard]] std::filesystem::path directory_of(const Id& id) const { return directory_ / id.hex(); }

  /// kNotFound; kFailedPrecondition naming what is under way, or, unless allowed, that the VM is unsettled and the fix.
  Result<Claim> claim(const std::string& name, const std::string& what, Allow allow = Allow::kSettledOnly);
  Result<Claim> claim(const Id& id, const std::string& what, Allow allow = Allow::kSettledOnly);
  /// New VMs, all or none, known but not saved until Claim::change(). kAlreadyExists names the taken name or id.
  Result<std::vector<Claim>> reserve(const std::vector<v1::VmRecord>& records, const std::string& what);
  /// For the watch of `worker`: waits until no command is under way. Nothing when the VM has left that worker, or at
  /// stop.
  std::optional<Claim> claim_for(const Id& id, const WorkerProcess& worker);
  /// The watch's news. False when the VM has left that worker.
  bool note(const Id& id, const WorkerProcess& worker, const v1::WorkerInfo& info);

  /// A living worker found at start. Makes a record when fvmmd ended before it could.
  Status adopt(const v1::WorkerInfo& info, std::shared_ptr<WorkerProcess> worker);
  /// After adoption: settles every VM without a worker and removes directories without a record.
  Status sweep();
  /// Ends waits in claim_for().
  void stop();

 private:
  friend class Claim;
  struct Entry {
    v1::VmRecord record;
    bool saved = false;
    v1::WorkerInfo info;
    std::shared_ptr<WorkerProcess> worker;
    std::string busy;
    bool internal = false;  // the claim is fvmmd's own
    double start_ms = 0;
  };
  Registry(std::filesystem::path directory, SessionLedger& ledger)
      : directory_(std::move(directory)), ledger_(ledger) {}
  Status load();
  [[nodiscard]] VmView view_of(const Id& id, const Entry& entry) const;
  Result<Claim> claim_locked(std::unique_lock<std::mutex>& lock, const Id& id, const std::string& what, Allow allow);
  void store(const Id& id, const v1::VmRecord& record);
  void release(const Id& id);

  const std::filesystem::path directory_;
  SessionLedger& ledger_;
  mutable std::mutex mutex_;
  std::condition_variable released_;
  std::map<Id, Entry> vms_;            // mutex_
  std::map<std::string, Id> by_name_;  // mutex_
  bool stopping_ = false;              // mutex_
};

}  // namespace fvmm::daemon
