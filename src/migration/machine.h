// What a migration needs of a VM, and the VM with its identity and template: the object a migration takes and gives
// back.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "base/id.h"
#include "base/result.h"
#include "memory/digest.h"
#include "memory/dirty.h"
#include "memory/guest_memory.h"
#include "memory/template_store.h"
#include "proto/config.pb.h"
#include "proto/peer.pb.h"
#include "proto/state.pb.h"

namespace fvmm::migration {

/// A VM as the protocol sees it: vmm::Vm in production (VmMachine), a fake in simulation. Owner: one thread.
class Machine {
 public:
  Machine() = default;
  virtual ~Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  Machine(Machine&&) = delete;
  Machine& operator=(Machine&&) = delete;

  virtual memory::GuestMemory& memory() = 0;
  virtual memory::DirtyTracker& dirty() = 0;
  [[nodiscard]] virtual bool paused() const = 0;
  virtual Status pause() = 0;   // every vCPU parked, its last exit complete, device I/O drained
  virtual Status resume() = 0;  // answers when every vCPU thread is about to enter the guest
  /// The right to run has gone elsewhere: every vCPU stops at once and for good, whoever has the machine in hand.
  /// resume() is kAborted with the reason from then on. An error: one has not stopped yet, and will. Thread: any.
  virtual Status fence(const std::string& why) = 0;
  [[nodiscard]] virtual Status fenced() const = 0;  // kAborted with the reason once fenced. Thread: any
  /// Holds every vCPU back for that part of its time, in slices; 0: not at all. At most 99 (FVMM_CHECK).
  virtual void throttle(unsigned percent) = 0;
  virtual Result<v1::MachineState> save_state() = 0;
  virtual Status load_state(const v1::MachineState& state) = 0;
  [[nodiscard]] virtual v1::CpuIdentity cpu() const = 0;

  // Disks whose files both hosts reach. A machine that has none does nothing here.

  /// All that the guest was told is written is on the files. Also before a pause, while the guest runs, so that little
  /// is left for it. kDeadlineExceeded, kIo.
  virtual Status flush_disks() { return {}; }
  // The disks' part of a template (vmm/disks.h): made ready while the guest runs, cut at the instant, sealed after it.
  // Not cut, it is dropped.
  virtual Status prepare_disk_cut() { return {}; }
  virtual Status cut_disks() { return {}; }  // paused; nothing where nothing was prepared. kDeadlineExceeded, kIo
  virtual Result<std::vector<memory::DiskCut>> seal_disk_cut() { return std::vector<memory::DiskCut>(); }
  virtual void drop_disk_cut() {}

  /// The peer may take them. Paused, and flushed since.
  virtual void let_go_of_disks() {}
  /// Paused. Locks them here, if they are not, and sees what the peer wrote; resume() does so too. kFailedPrecondition
  /// while somebody else has one.
  virtual Status take_disks() { return {}; }
};

/// Makes the delta known where nothing was logged so far (tracking `scan`): before a pause, never in one. How long that
/// took; zero when it was known.
inline Result<std::chrono::nanoseconds> find_delta(Machine& machine) {
  if (machine.dirty().ready()) return std::chrono::nanoseconds(0);
  const auto began = std::chrono::steady_clock::now();
  FVMM_TRY(machine.dirty().harvest());
  return std::chrono::steady_clock::now() - began;
}

/// The memory with which a VM arrived, which the host that it came from keeps as a generation: going back there, only
/// what was written since has to travel. docs/techniques.md.
struct WayBack {
  enum class Agreed {
    kByIdAlone,  // with an older peer, which agrees on nothing
    kOpen,       // not yet, or never: the template will do
    kYes         // way_back.h: both have the same, and the peer has sealed it
  };
  Id generation;                                        // its id there: the session that brought the VM
  std::string peer;                                     // HOST:PORT
  std::unique_ptr<memory::DirtyTracker::Reader> since;  // from before the first entry
  Agreed agreed = Agreed::kByIdAlone;
  memory::Digest digest{};  // of the generation there, once agreed
};

/// A VM, who it is, and what its memory is a delta of.
struct Guest {
  v1::VmConfig config;
  std::uint64_t fencing_token = 0;
  v1::TemplateRef base;                     // empty id: the zero template
  std::optional<memory::OpenTemplate> pin;  // holds the base while we map it
  std::unique_ptr<Machine> machine;
  // Both die before the machine.
  std::unique_ptr<memory::DirtyTracker::Reader> since_base;        // pages that differ from the base
  std::unique_ptr<memory::DirtyTracker::Reader> since_generation;  // and from the last generation; null: not replicated
  std::optional<WayBack> way_back;
};

}  // namespace fvmm::migration
