// The Templates service: a thin layer over the store, the worker that makes a template, and the push to a peer.
#pragma once

#include <functional>
#include <string>

#include "base/clock.h"
#include "base/result.h"
#include "control/server.h"
#include "daemon/registry.h"
#include "memory/template_store.h"
#include "migration/template_push.h"
#include "net/channel.h"
#include "proto/control.pb.h"

namespace fvmm::daemon {

inline constexpr std::chrono::minutes kPushWaitMax{60};

v1::TemplateRef to_ref(const memory::TemplateInfo& info);
v1::TemplateInfo to_proto(const memory::TemplateInfo& info);

/// A peer's address as a person wrote it. kInvalidArgument unless loopback: peers are not authenticated yet.
Result<net::Endpoint> parse_peer(const std::string& text);

/// Owner: the daemon. Thread: any.
class TemplateService {
 public:
  TemplateService(Registry& registry, memory::TemplateStore& store) : registry_(registry), store_(store) {}

  void bind(control::Server& server);

  /// The VM's worker pauses it, writes the template into the store, seals it and rebases the VM on it.
  Result<v1::TemplateInfo> create(const v1::CreateTemplateRequest& request, const Deadline& deadline);
  [[nodiscard]] Result<v1::TemplateList> list() const;
  Result<v1::TemplateInfo> show(const std::string& name) const;
  Result<v1::VerifyReport> verify(const std::string& name) const;
  Status remove(const std::string& name);
  Result<v1::TemplateInfo> import(const v1::ImportRequest& request);
  /// `progress` returns false to give up.
  Result<v1::PushEvent> push(const v1::PushRequest& request, const std::function<bool(const v1::PushEvent&)>& progress);

 private:
  Registry& registry_;
  memory::TemplateStore& store_;
};

}  // namespace fvmm::daemon
