// The VMs that other hosts replicate to this one: which connection serves each, and whether somebody has recovered it.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/deadline_mutex.h"
#include "base/id.h"
#include "base/result.h"
#include "net/stream.h"
#include "proto/peer.pb.h"
#include "proto/state.pb.h"

namespace fvmm::daemon {

inline constexpr std::size_t kReplicasMax = 1024;       // VMs whose replicas are here, or were recovered here
inline constexpr std::size_t kReplicaStopsMax = 1024;   // ended replications; past that the oldest is forgotten
inline constexpr unsigned kReplicaStagingPercent = 50;  // of the host's RAM, when nobody says otherwise
inline constexpr std::chrono::seconds kReplicaTakeoverWait{30};  // for the old connection of a VM, when a new one comes

/// Thread: any. Records are durable before anything depends on them: STATE/replicas/<vm id>.pb, and .stop for what its
/// source has ended.
class Replicas {
 public:
  /// @param staging_bytes_max  RAM of all VMs whose generations may come in at once: a generation is staged in our
  ///                           memory, and may be as large as its VM
  static Result<Replicas> open(std::filesystem::path directory, std::uint64_t staging_bytes_max);

  /// While it lives, its connection is the VM's only one.
  class Session {
   public:
    Session(Replicas& table, const Id& vm) : table_(&table), vm_(vm) {}
    ~Session();
    Session(Session&& other) noexcept : table_(std::exchange(other.table_, nullptr)), vm_(other.vm_) {}
    Session& operator=(Session&&) = delete;
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;

   private:
    Replicas* table_;
    Id vm_;
  };
  /// A source connects (anew): the connection it had before is cut, and its end waited for. Notes the source durably.
  /// kDeadlineExceeded when the old one does not end; kResourceExhausted past kReplicasMax or the memory for staging;
  /// kAborted when the source has ended that replication, or one under a newer token. `stream` outlives the session.
  Result<Session> begin(const v1::PeerHello& hello, net::Stream& stream);

  /// Runs the function unless the VM has been recovered here under `token` or a newer one; recover() waits meanwhile.
  bool unless_recovered(const Id& vm, std::uint64_t token, const std::function<void()>& work);

  /// Takes the right to run the VM: durable before it returns the new token. Every source with an older one is fenced
  /// from then on, and the connection that serves the VM is cut. `ready` has the last word, while nothing of the VM can
  /// be sealed: it returns the token of what would run, and its error leaves everything as it was. So does
  /// kDeadlineExceeded, when a seal under way, or `ready`, takes longer than the caller waits.
  Result<std::uint64_t> recover(const Id& vm, const std::function<Result<std::uint64_t>()>& ready,
                                const Deadline& deadline);

  enum class Forgotten {
    kYes,         // durably: no record of a replica is here, and nothing older comes back
    kSuperseded,  // a later replication of the same VM is here: nothing was done
    kRecovered    // the VM was recovered here: its source is fenced
  };
  /// The source has ended a replication (FORGET_REPLICA). Cuts its connection, and calls `drop`, which removes what it
  /// had sealed, while nothing can be sealed or recovered. May be repeated. kDeadlineExceeded as begin().
  Result<Forgotten> forget(const v1::PeerHello& hello, const std::function<void()>& drop);

  /// kNotFound: never replicated to this host, or no longer.
  [[nodiscard]] Result<v1::ReplicaRecord> find(const Id& vm) const;
  [[nodiscard]] Result<v1::ReplicaRecord> find(const std::string& name) const;

 private:
  struct Entry {
    v1::ReplicaRecord record;             // empty: no replica is here
    std::optional<v1::ReplicaStop> stop;  // the last replication that its source has ended
    std::string replication;              // of the last session; empty: none since fvmmd began, or an older peer
    net::Stream* stream = nullptr;        // of the session under way
    std::shared_ptr<DeadlineMutex> gate =
        std::make_shared<DeadlineMutex>();  // taken before the table's: sealing or recovering
  };
  struct State {
    std::mutex mutex;
    std::condition_variable ended;
    std::map<Id, Entry> entries;  // mutex
  };
  Replicas(std::filesystem::path directory, std::uint64_t staging_bytes_max)
      : directory_(std::move(directory)), staging_bytes_max_(staging_bytes_max), state_(std::make_unique<State>()) {}
  [[nodiscard]] std::filesystem::path file_of(const Id& vm, const char* kind) const;
  Status load(const std::filesystem::path& file);
  Status write(const Id& vm, const v1::ReplicaRecord& record) const;
  std::shared_ptr<DeadlineMutex> gate_of(const Id& vm);
  // With State::mutex held:
  Status end_session(const Id& vm, const std::string& name, std::unique_lock<std::mutex>& lock);
  [[nodiscard]] Status check_room(const Id& vm, const v1::VmConfig& config) const;
  Status remember_stop(const Id& vm, const v1::PeerHello& hello);
  [[nodiscard]] Result<v1::ReplicaRecord> find_locked(const Id& vm) const;

  std::filesystem::path directory_;
  std::uint64_t staging_bytes_max_;
  std::unique_ptr<State> state_;
};

}  // namespace fvmm::daemon
