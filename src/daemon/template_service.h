// The Templates service: a thin layer over the store, the worker that makes a template, and the push to a peer.
#pragma once

#include <functional>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "control/server.h"
#include "daemon/background_fold.h"
#include "daemon/registry.h"
#include "memory/template_store.h"
#include "migration/template_push.h"
#include "migration/template_ref.h"
#include "net/channel.h"
#include "proto/control.pb.h"

namespace fvmm::daemon {

inline constexpr std::chrono::minutes kPushWaitMax{60};

using migration::to_ref;
v1::TemplateInfo to_proto(const memory::TemplateInfo& info);

/// What a running VM counts its delta from, in its worker's words: the registry may not have heard of a template just
/// made.
Result<v1::TemplateRef> live_base(const VmView& vm);

/// Pushes a template and, first, the parents of a delta that the peer lacks. Figures are of all of them.
Result<migration::PushStats> push_with_parents(const memory::TemplateStore& store, const memory::TemplateInfo& info,
                                               const net::Endpoint& to, const Deadline& deadline,
                                               const std::function<bool(const migration::PushProgress&)>& progress);

/// A peer's address as a person wrote it. kInvalidArgument unless loopback: peers are not authenticated yet.
Result<net::Endpoint> parse_peer(const std::string& text);

/// Owner: the daemon. Thread: any.
class TemplateService {
 public:
  /// @param folds  may be null: nothing is folded in the background
  TemplateService(Registry& registry, memory::TemplateStore& store, BackgroundFold* folds)
      : registry_(registry), store_(store), folds_(folds) {}

  void bind(control::Server& server);

  /// The VM's worker pauses it, writes the template into the store, seals it and rebases the VM on it.
  /// @param stop  asked while it is made resident, if that was wanted: somebody has lost interest
  Result<v1::TemplateInfo> create(const v1::CreateTemplateRequest& request, const Deadline& deadline,
                                  const std::function<bool()>& stop = {});
  /// Resident, or stored only. kResourceExhausted when this host lacks the RAM.
  Result<v1::TemplateInfo> load(const std::string& name, const std::function<bool()>& stop = {});
  Result<v1::TemplateInfo> unload(const std::string& name);
  [[nodiscard]] Result<v1::TemplateList> list() const;
  Result<v1::TemplateInfo> show(const std::string& name) const;
  Result<v1::VerifyReport> verify(const std::string& name) const;
  Status remove(const std::string& name);  // a fold in the background does not stand in its way
  Result<v1::TemplateInfo> fold(const std::string& name);
  /// Removes generations of ours (NAME@G) that nothing maps, descends from or refers to; those of VMs replicated to
  /// this host keep their newest.
  Result<v1::GcReport> gc();
  Result<v1::TemplateInfo> import(const v1::ImportRequest& request);
  /// `progress` returns false to give up.
  Result<v1::PushEvent> push(const v1::PushRequest& request, const std::function<bool(const v1::PushEvent&)>& progress);

 private:
  Result<v1::TemplateInfo> capture(const v1::CreateTemplateRequest& request, const Deadline& deadline);
  Status remove_from_store(const std::string& name);
  Registry& registry_;
  memory::TemplateStore& store_;
  BackgroundFold* const folds_;
};

}  // namespace fvmm::daemon
