// The VMs that other hosts replicate to this one: which connection serves each, and whether somebody has recovered it.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "base/clock.h"
#include "base/id.h"
#include "base/result.h"
#include "net/stream.h"
#include "proto/peer.pb.h"
#include "proto/state.pb.h"

namespace fvmm::daemon {

inline constexpr std::size_t kReplicasMax = 1024;                // records, of VMs ever replicated to this host
inline constexpr std::chrono::seconds kReplicaTakeoverWait{30};  // for the old connection of a VM, when a new one comes

/// Thread: any. Records are durable before anything depends on them: STATE/replicas/<vm id>.pb.
class Replicas {
 public:
  static Result<Replicas> open(std::filesystem::path directory);

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
  /// kDeadlineExceeded when the old one does not end; kResourceExhausted past kReplicasMax. `stream` outlives the
  /// session.
  Result<Session> begin(const v1::PeerHello& hello, net::Stream& stream);

  /// Runs the function unless the VM has been recovered here under `token` or a newer one; recover() waits meanwhile.
  bool unless_recovered(const Id& vm, std::uint64_t token, const std::function<void()>& work);

  /// Takes the right to run the VM, above `token_seen`: durable before it returns the new token. Every source with an
  /// older one is fenced from then on, and the connection that serves the VM is cut.
  Result<std::uint64_t> recover(const Id& vm, std::uint64_t token_seen);

  /// kNotFound: never replicated to this host.
  [[nodiscard]] Result<v1::ReplicaRecord> find(const Id& vm) const;
  [[nodiscard]] Result<v1::ReplicaRecord> find(const std::string& name) const;

 private:
  struct Entry {
    v1::ReplicaRecord record;
    net::Stream* stream = nullptr;  // of the session under way
    std::shared_ptr<std::mutex> gate =
        std::make_shared<std::mutex>();  // taken before the table's: sealing or recovering
  };
  struct State {
    std::mutex mutex;
    std::condition_variable ended;
    std::map<Id, Entry> entries;  // mutex
  };
  explicit Replicas(std::filesystem::path directory)
      : directory_(std::move(directory)), state_(std::make_unique<State>()) {}
  Status write(const Id& vm, const v1::ReplicaRecord& record) const;
  std::shared_ptr<std::mutex> gate_of(const Id& vm);

  std::filesystem::path directory_;
  std::unique_ptr<State> state_;
};

}  // namespace fvmm::daemon
