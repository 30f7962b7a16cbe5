// The door for other daemons: accepts connections, reads exactly one Hello from each, and hands the connection to whom
// it is for. Whatever a peer can make us hold is bounded by a limit here.
#pragma once

#include <atomic>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/result.h"
#include "daemon/admission.h"
#include "daemon/call_worker.h"
#include "daemon/incoming.h"
#include "daemon/pool.h"
#include "daemon/registry.h"
#include "daemon/replicas.h"
#include "daemon/supervisor.h"
#include "memory/template_store.h"
#include "net/channel.h"

namespace fvmm::daemon {

inline constexpr unsigned kPendingPeersMax = 32;  // connections whose Hello has been answered by nobody yet
inline constexpr unsigned kPushesMax = 2;         // templates received at once
inline constexpr std::chrono::seconds kHelloWait{5};
inline constexpr std::chrono::seconds kDataWait{5};        // for the session of a data connection to be ready
inline constexpr std::chrono::hours kIncomingWaitMax{24};  // whatever timeout the source names

/// One accept thread, and one thread per connection while fvmmd itself deals with it. Owner: the daemon.
class PeerListener {
 public:
  struct Context {
    Registry& registry;
    WorkerPool& pool;
    Supervisor& supervisor;
    memory::TemplateStore& store;
    IncomingSessions& sessions;
    Replicas& replicas;
    StopSignal& stop;
    std::filesystem::path state_directory;
    bool test_hooks = false;
  };
  /// Errors of net::Listener::open (not loopback, in use).
  static Result<std::unique_ptr<PeerListener>> open(const net::Endpoint& at, Context context);
  ~PeerListener();
  PeerListener(const PeerListener&) = delete;
  PeerListener& operator=(const PeerListener&) = delete;
  PeerListener(PeerListener&&) = delete;
  PeerListener& operator=(PeerListener&&) = delete;

  [[nodiscard]] net::Endpoint bound() const { return bound_; }
  void start();  // accepting begins once the daemon knows its VMs
  void join();   // after StopSignal::fire()

 private:
  struct Handler {
    std::thread thread;
    std::atomic<bool> done = false;
  };
  PeerListener(net::Listener listener, Context context);
  void accept_loop();
  void serve(UniqueFd socket);
  void dispatch(std::unique_ptr<net::Channel> channel, const v1::PeerHello& hello);

  Status add_data(std::unique_ptr<net::Channel>& channel, const v1::PeerHello& hello);
  Status answer_query(net::Channel& channel, const v1::PeerHello& hello);
  Status receive_push(net::Channel& channel, const v1::PeerHello& hello);
  // replicate_in.cc
  Status check_replica(const v1::PeerHello& hello) const;
  Status replicate_in(net::Channel& channel, const v1::PeerHello& hello);
  Status forget_replica(net::Channel& channel, const v1::PeerHello& hello);
  Status answer_vm_query(net::Channel& channel, const v1::PeerHello& hello);
  Status answer_replica_check(net::Channel& channel, const v1::PeerHello& hello) const;
  /// A migration from Hello to its end. Errors before the worker has the connection are told to the source.
  Status migrate_in(std::unique_ptr<net::Channel>& channel, const v1::PeerHello& hello);
  [[nodiscard]] Result<AdmissionSnapshot> snapshot(const v1::PeerHello& hello) const;
  void receive(Claim& claim, const std::shared_ptr<WorkerProcess>& worker, std::vector<UniqueFd> descriptors,
               v1::WorkerReceiveRequest request);

  net::Listener listener_;  // the accept thread's
  const net::Endpoint bound_;
  const Context context_;
  std::atomic<unsigned> pending_ = 0;
  std::atomic<unsigned> pushes_ = 0;
  std::thread accepting_;
  std::list<Handler> handlers_;  // the accept thread's; join() after that has ended
};

}  // namespace fvmm::daemon
