// The worker's commands: what each method of the Worker service does to the guest.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "control/server.h"
#include "daemon/worker.h"
#include "daemon/worker_board.h"
#include "daemon/worker_slot.h"
#include "devices/console.h"
#include "migration/destination.h"
#include "migration/machine.h"
#include "migration/replication.h"
#include "migration/source.h"
#include "migration/vm_machine.h"
#include "migration/way_back_talk.h"
#include "proto/worker.pb.h"

namespace fvmm::daemon {

Error no_guest();
/// A guest that rests: not moved away, not unsettled, not stopped by itself.
Status check_usable(const v1::WorkerInfo& info);

/// Everything one worker has. Owner: worker_main. Handlers run on the server's pool threads and take the guest from the
/// slot for as long as they work on it.
class Worker {
 public:
  /// Makes the warm VM and registers the methods.
  static Result<std::unique_ptr<Worker>> create(WorkerOptions options);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  Worker(Worker&&) = delete;
  Worker& operator=(Worker&&) = delete;
  void run();  // serves until Stop

 private:
  explicit Worker(WorkerOptions options, std::string boot_id);
  void register_methods();
  void register_migration();
  void register_replication();

  // worker_guest.cc: making guests out of the warm VM
  // `nets`: descriptors of the configuration's networks, in its order.
  Result<v1::WorkerInfo> boot(const v1::WorkerBootRequest& request, std::vector<UniqueFd> nets);
  Result<v1::WorkerInfo> clone(const v1::WorkerCloneRequest& request, std::vector<UniqueFd> nets);
  Result<std::unique_ptr<migration::Guest>> make_replica(const v1::WorkerReceiveRequest& request,
                                                         std::vector<UniqueFd> nets);
  Result<std::shared_ptr<vmm::Vm>> take_warm(const v1::VmConfig& config);
  Status dress(const std::shared_ptr<vmm::Vm>& vm, const v1::VmConfig& config, const std::string& vm_directory,
               const vmm::CpuidTable& cpu);
  std::unique_ptr<migration::Guest> wrap(std::shared_ptr<vmm::Vm> vm, const v1::VmConfig& config, std::uint64_t token,
                                         std::optional<memory::OpenTemplate> pin);
  void show(const migration::Guest& guest);
  Status start(migration::Guest& guest, bool run, SteadyTime began);
  void guest_stopped(const vmm::VcpuStop& stop);

  // worker_commands.cc
  Result<v1::WorkerInfo> resume();
  Result<v1::WorkerInfo> pause();
  Result<v1::WorkerInfo> balloon(const v1::BalloonRequest& request);
  Result<v1::WorkerInfo> info();
  Status count_delta();
  Result<v1::WorkerInfo> watch(control::Call& call);
  Status poke(const v1::PokeRequest& request);

  // worker_template.cc
  Result<v1::TemplateInfo> create_template(const v1::WorkerTemplateRequest& request);

  // worker_way_back.cc
  Result<v1::TemplateInfo> seal_way_back(const v1::WorkerSealRequest& request);
  void agree_on_way_back();
  void end_way_back();
  Status when_guest_rests(const std::string& what, const std::function<Status(migration::Guest&)>& work);

  // worker_migration.cc
  Result<v1::MigrateResult> migrate_guest(migration::Guest& guest, const v1::WorkerMigrateRequest& request,
                                          control::Call& call);
  v1::MigrateResult run_session(migration::Guest& guest, migration::SourceOptions options,
                                migration::Transport& transport, migration::SourceState& ended);
  Result<v1::MigrateEvent> migrate(control::Call& call, const v1::WorkerMigrateRequest& request);
  Result<v1::Empty> cancel_migration();
  Result<v1::WorkerInfo> receive_guest(control::Call& call, const v1::WorkerReceiveRequest& request);
  Result<v1::WorkerInfo> receive(control::Call& call, const v1::WorkerReceiveRequest& request);
  Result<v1::Empty> add_connection(control::Call& call, const v1::WorkerAddConnectionRequest& request);
  Result<v1::WorkerInfo> settle(const v1::WorkerSettleRequest& request);
  Result<v1::SessionAnswer> ask_session(const v1::SessionQuery& query);

  // worker_replication.cc
  Status fence(const std::string& peer);  // thread: any; with no guest in hand
  Status with_guest(const std::string& what, const std::function<Status(migration::Guest&)>& work);
  Status with_guest(GuestSlot::Held held, const std::function<Status(migration::Guest&)>& work) const;
  Result<v1::ReplicaStatus> start_replication(const v1::WorkerReplicateRequest& request);
  Result<v1::ReplicaStatus> stop_replication();
  Result<v1::ReplicaStatus> replication_status();
  Status check_not_replicated();

  const WorkerOptions options_;
  const std::string boot_id_;
  WorkerBoard board_;
  std::mutex warm_mutex_;
  std::unique_ptr<vmm::Vm> warm_;  // warm_mutex_; taken once
  std::shared_ptr<vmm::Vm> vm_;    // once dressed; never given up
  GuestSlot slot_;
  std::atomic<devices::SerialOutput*> serial_{nullptr};  // of vm_
  std::unique_ptr<devices::ConsoleServer> console_;
  std::unique_ptr<devices::ConsoleServer> virtio_console_;               // null: no such device
  std::map<std::uint64_t, std::array<std::byte, kPageBytes>> captured_;  // test hook; with the guest in hand
  std::string vm_directory_;                                             // set with the guest
  v1::VmState before_migration_ = v1::VM_RUNNING;                        // with the guest in hand
  std::optional<migration::Departed> departed_;  // with the guest in hand: it has left, against a template that we have
  std::mutex session_mutex_;
  std::shared_ptr<migration::SourceSession> source_;  // session_mutex_; while one is under way
  struct Left {
    Id session;
    migration::SourceState state{};
  };
  std::optional<Left> left_;                                     // session_mutex_; the last one that has ended
  std::unique_ptr<migration::FileJournal> destination_journal_;  // outlives destination_, which may still be asked
  std::shared_ptr<migration::DestinationSession> destination_;   // session_mutex_; kept for questions
  std::atomic<bool> stopping_{false};
  std::mutex replication_mutex_;
  std::unique_ptr<migration::Replication> replication_;  // replication_mutex_; its threads use what stands above
  std::thread way_back_;                                 // of a VM that came in; once
  std::shared_ptr<net::Stream> way_back_stream_;         // session_mutex_; what it waits on; stop() cancels it
  std::unique_ptr<control::Server> server_;
};

}  // namespace fvmm::daemon
