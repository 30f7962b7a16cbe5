// Calls to a worker over its own socket: one connection per call. Thread: any.
#pragma once

#include <filesystem>
#include <functional>
#include <mutex>
#include <set>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "control/client.h"
#include "proto/worker.pb.h"

namespace fvmm::daemon {

inline constexpr std::chrono::seconds kInfoWait{10};  // for what a living worker answers at once

/// Told once when fvmmd stops: ends what fvmmd waits for (streams, connections), and nothing in the workers. Thread:
/// any.
class StopSignal {
 public:
  void fire();
  [[nodiscard]] bool fired() const;

  /// While it lives, fire() calls `cancel`; made after fire(), it calls it at once. `cancel` must not block.
  class Guard {
   public:
    Guard(StopSignal& signal, std::function<void()> cancel);
    ~Guard();
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    Guard(Guard&&) = delete;
    Guard& operator=(Guard&&) = delete;

   private:
    friend class StopSignal;
    StopSignal& signal_;
    const std::function<void()> cancel_;
  };

 private:
  mutable std::mutex mutex_;
  bool fired_ = false;       // mutex_
  std::set<Guard*> guards_;  // mutex_
};

/// The Worker service of worker.proto, seen from fvmmd. WorkerProcess::client() makes one; a simulated process has its
/// own.
class WorkerClient {
 public:
  explicit WorkerClient(std::filesystem::path socket) : socket_(std::move(socket)) {}
  virtual ~WorkerClient() = default;
  WorkerClient(const WorkerClient&) = delete;
  WorkerClient& operator=(const WorkerClient&) = delete;
  WorkerClient(WorkerClient&&) = delete;
  WorkerClient& operator=(WorkerClient&&) = delete;

  /// `nets`: the descriptors of its networks (vmm/net_config.h), which stay the caller's.
  virtual Result<v1::WorkerInfo> boot(const v1::WorkerBootRequest& request, std::span<const UniqueFd> nets,
                                      const Deadline& deadline) const;
  virtual Result<v1::WorkerInfo> clone(const v1::WorkerCloneRequest& request, std::span<const UniqueFd> nets,
                                       const Deadline& deadline) const;
  virtual Result<v1::WorkerInfo> resume(const Deadline& deadline) const;
  virtual Result<v1::WorkerInfo> pause(const Deadline& deadline) const;
  virtual Result<v1::WorkerInfo> balloon(const v1::BalloonRequest& request, const Deadline& deadline) const;
  virtual Status stop(const Deadline& deadline) const;
  virtual Result<v1::WorkerInfo> info(const Deadline& deadline) const;
  virtual Result<v1::TemplateInfo> create_template(const v1::WorkerTemplateRequest& request,
                                                   const Deadline& deadline) const;
  virtual Status cancel_migration(const Deadline& deadline) const;
  virtual Status add_connection(const v1::WorkerAddConnectionRequest& request, int connection,
                                const Deadline& deadline) const;
  virtual Result<v1::WorkerInfo> settle(bool resume, const Deadline& deadline) const;
  virtual Result<v1::SessionAnswer> ask_session(const v1::SessionQuery& query, const Deadline& deadline) const;
  virtual Result<v1::ReplicaStatus> start_replication(const v1::WorkerReplicateRequest& request,
                                                      const Deadline& deadline) const;
  virtual Result<v1::ReplicaStatus> stop_replication(const Deadline& deadline) const;
  virtual Status fence(const std::string& peer, const Deadline& deadline) const;
  virtual Result<v1::ReplicaStatus> replication_status(const Deadline& deadline) const;
  virtual Result<v1::TemplateInfo> seal_way_back(const v1::WorkerSealRequest& request, const Deadline& deadline) const;
  virtual Status poke(const v1::PokeRequest& request, const Deadline& deadline) const;

  /// Streams. The callback returns false to leave; the signal ends them with kCancelled.
  virtual Status watch(StopSignal& stop, const Deadline& deadline,
                       const std::function<bool(const v1::WorkerInfo&)>& event) const;
  virtual Status migrate(const v1::WorkerMigrateRequest& request, StopSignal& stop, const Deadline& deadline,
                         const std::function<bool(const v1::MigrateEvent&)>& event) const;
  /// `descriptors`: the control connection, then those of its networks.
  virtual Status receive(const v1::WorkerReceiveRequest& request, std::span<const UniqueFd> descriptors,
                         StopSignal& stop, const Deadline& deadline,
                         const std::function<bool(const v1::WorkerInfo&)>& event) const;

 private:
  template <class Response, class Request>
  Result<Response> call(const char* method, const Request& request, const Deadline& deadline,
                        std::span<const int> descriptors = {}) const;
  template <class Event, class Request>
  Status stream(const char* method, const Request& request, StopSignal& stop, const Deadline& deadline,
                const std::function<bool(const Event&)>& event, std::span<const int> descriptors = {}) const;

  std::filesystem::path socket_;
};

}  // namespace fvmm::daemon
