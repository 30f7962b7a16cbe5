// The Host service: what this host is and offers.
#pragma once

#include <functional>
#include <string>

#include "base/result.h"
#include "control/server.h"
#include "daemon/cpu_templates.h"
#include "proto/control.pb.h"

namespace fvmm::daemon {

inline constexpr const char* kVersion = "0.1.0";

/// Thread: any.
class HostService {
 public:
  HostService(std::string listen, const CpuTemplates& cpus, std::function<unsigned()> warm_workers)
      : listen_(std::move(listen)), cpus_(cpus), warm_workers_(std::move(warm_workers)) {}
  void bind(control::Server& server);
  [[nodiscard]] Result<v1::HostInfo> info() const;

 private:
  const std::string listen_;
  const CpuTemplates& cpus_;
  const std::function<unsigned()> warm_workers_;
};

}  // namespace fvmm::daemon
