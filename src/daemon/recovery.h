// A recovery up to the right to run, for fvmmd and for the simulation of it:
//
//   newest generation open, fit to run ─► admitted: source asked, VM claimed, disks, networks, worker ─► no seal is
//   under way ─► the newest by now open, fit ─► token durable ─► only the start is left
//   └──── any error here: the source keeps its right, and of the recovery nothing is here ────┘
#pragma once

#include <cstdint>
#include <functional>

#include "base/clock.h"
#include "base/id.h"
#include "base/result.h"
#include "daemon/replicas.h"
#include "memory/open_template.h"
#include "memory/template_store.h"

namespace fvmm::daemon {

/// A sealed generation that can be run: open, which keeps it in the store, and its machine state as it was saved. One
/// with more runs than can be mapped is no worse: the shortest are read into memory.
struct Runnable {
  memory::OpenTemplate opened;
  v1::MachineState state;
};
/// The VM's newest. kNotFound without one; else what is wrong with it, by name.
Result<Runnable> open_newest(const memory::TemplateStore& store, const Id& vm);

/// Who asks for the right to run a VM, and whatever else may refuse it: asked before the right is taken, without a lock
/// held. What it makes ready is the caller's.
using Admit = std::function<Status(const Runnable&)>;

struct RightToRun {
  Runnable from;            // what every source was told last: nothing of that VM is sealed any more
  std::uint64_t token = 0;  // durable; every source with an older one is fenced
};
/// Errors of open_newest(), of `admit` and of Replicas::recover(); kFailedPrecondition when the VM has been configured
/// otherwise since it was admitted. After any of them nothing has happened.
Result<RightToRun> take_right(Replicas& replicas, const memory::TemplateStore& store, const Id& vm, const Admit& admit,
                              const Deadline& deadline);

}  // namespace fvmm::daemon
