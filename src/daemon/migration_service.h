// The Migrations service: hands a VM's worker the order to migrate, and settles what became of it.
#pragma once

#include <functional>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "control/server.h"
#include "daemon/call_worker.h"
#include "daemon/registry.h"
#include "daemon/resolve.h"
#include "daemon/supervisor.h"
#include "daemon/way_back.h"
#include "memory/template_store.h"
#include "proto/control.pb.h"

namespace fvmm::daemon {

inline constexpr std::uint32_t kMigrateTimeoutMs = 60'000;  // when the request names none
inline constexpr std::uint32_t kMigrateTimeoutMsMax = 24 * 3'600'000;
inline constexpr std::chrono::seconds kMigrateMargin{30};  // beyond the worker's own deadline
inline constexpr std::chrono::seconds kAskPeerWait{5};

/// Asks the peer of a session what became of it (PeerHello QUERY_SESSION). kUnavailable and the like: unknown.
using AskPeer = std::function<Result<v1::SessionAnswer>(const v1::SessionRecord& session)>;
Result<v1::SessionAnswer> ask_peer(const v1::SessionRecord& session);

/// Owner: the daemon. Thread: any.
class MigrationService {
 public:
  struct Options {
    std::string listen;  // our own peer address, told to the destination; empty without a listener
    bool test_hooks = false;
    AskPeer ask = ask_peer;
  };
  MigrationService(Registry& registry, memory::TemplateStore& store, StopSignal& stop, Options options)
      : registry_(registry), store_(store), stop_(stop), options_(std::move(options)), way_backs_(store) {}

  void bind(control::Server& server);

  /// Runs to its end even when nobody listens to `progress` any more; the return value is the last event.
  Result<v1::MigrateEvent> migrate(const v1::MigrateRequest& request,
                                   const std::function<void(const v1::MigrateEvent&)>& progress);
  Status cancel(const std::string& name);
  Result<v1::ResolveReport> resolve(const v1::ResolveRequest& request);

 private:
  [[nodiscard]] bool template_is_missing(const Result<v1::MigrateResult>& result, bool pushed) const;
  Result<v1::MigrateResult> push_and_run(const VmView& vm, const v1::MigrateRequest& request,
                                         const std::function<void(const v1::MigrateEvent&)>& progress);
  Result<v1::MigrateResult> run(const VmView& vm, const v1::MigrateRequest& request,
                                const std::function<void(const v1::MigrateEvent&)>& progress);
  Status settle(Claim& claim, const v1::MigrateRequest& request, v1::MigrateResult& result);
  Status leave(Claim& claim, const std::string& peer, v1::MigrateResult& result);
  Status carry_out(Claim& claim, Resolution resolution, const v1::SessionRecord& session);

  Registry& registry_;
  memory::TemplateStore& store_;
  StopSignal& stop_;
  const Options options_;
  WayBacks way_backs_;
};

/// The request's values checked, defaults filled in. kInvalidArgument names the value.
Result<v1::MigrateRequest> check_migrate(const v1::MigrateRequest& request, bool test_hooks);

}  // namespace fvmm::daemon
