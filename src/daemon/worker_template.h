// How a worker makes a template of its guest: `template create`, once the guest is in hand.
#pragma once

#include <string>

#include "base/result.h"
#include "migration/machine.h"
#include "migration/steps.h"
#include "proto/control.pb.h"
#include "proto/worker.pb.h"

namespace fvmm::daemon {

/// Seals a template of the guest in the request's store; from its instant on the guest's delta is counted from it. The
/// guest runs on, or stays paused.
/// @param engine  "stop", "chase" or "cow"
/// Thread: the one that has the guest in hand. Errors: those of the store, the capture and the machine.
Result<v1::TemplateInfo> make_template(migration::Guest& guest, const std::string& engine,
                                       const v1::WorkerTemplateRequest& request, const migration::StepHook& on_step);

}  // namespace fvmm::daemon
