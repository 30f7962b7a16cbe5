// One vCPU and the thread that owns it.
//
//            run                 kicked, "park" in the mailbox
//   Parked ───────► Running ─────────────────────────────────► Parked      destroyed (from any) ──► thread ends
//                      └── an exit nobody can go on from ──► Stopped (accepts everything but run)
//
// Other threads send a message and wait for its answer; they never reach in. A park is seen only after KVM_RUN returned
// EINTR with immediate_exit set, so the last exit's port or MMIO access is complete and the state can be saved.
#pragma once

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/fence.h"
#include "base/mailbox.h"
#include "base/result.h"
#include "base/unique_fd.h"
#include "devices/bus.h"
#include "memory/guest_memory.h"
#include "vmm/kvm.h"

namespace fvmm::vmm {

/// Why a vCPU stopped by itself.
struct VcpuStop {
  enum class Kind { kReset, kFailed };
  Kind kind = Kind::kFailed;
  std::string report;  // for people: exit reason, registers, code bytes
};

/// What a vCPU's exits act on. Set once before the first run; outlives the vCPU.
struct VcpuEnvironment {
  devices::Bus* ports = nullptr;
  devices::Bus* mmio = nullptr;
  memory::GuestMemory* memory = nullptr;
  const Fence* fence = nullptr;  // closed: never into the guest again
  const KvmFeatures* features = nullptr;
  std::atomic<std::uint64_t>* completed = nullptr;  // counts instructions completed for KVM (complete.h); null: never
  const std::atomic<bool>* reset_requested = nullptr;  // a device wants the machine reset: looked at after each access
  const std::atomic<bool>* machine_stopped = nullptr;  // looked at before each entry: another vCPU ended the guest
  std::function<void(unsigned index, const VcpuStop&)> on_stop;  // called on the vCPU's thread; must not block
};

class Vcpu {
 public:
  /// KVM_CREATE_VCPU, its kvm_run mapping, and the thread, parked.
  static Result<std::unique_ptr<Vcpu>> create(int vm_fd, unsigned index, const KvmFeatures& features,
                                              const VcpuEnvironment& environment);
  ~Vcpu();  // end()
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;
  Vcpu(Vcpu&&) = delete;
  Vcpu& operator=(Vcpu&&) = delete;

  using Answer = std::future<Status>;
  /// Answered when the thread is about to enter KVM_RUN; kFailedPrecondition when it has stopped for good, kAborted
  /// behind a closed fence.
  [[nodiscard]] Answer run();
  /// Kicks it out of guest mode; answered once parked.
  [[nodiscard]] Answer park();
  /// Runs a function on the vCPU's thread while it is parked (KVM wants vCPU ioctls there); its status is the answer.
  [[nodiscard]] Answer call(std::function<Status()> function);
  /// Out of guest mode for so long, or until the next message; answered when the nap begins. A parked vCPU sleeps
  /// anyway.
  [[nodiscard]] Answer nap(std::chrono::microseconds length);
  /// Out of guest mode for a moment, so that it looks at `machine_stopped`. Thread: any, also another vCPU's while this
  /// one ends.
  void nudge();
  /// Kicks, quits, joins; a second time does nothing. Thread: the owner's.
  void end();
  /// Waits for an answer. kDeadlineExceeded leaves the request standing.
  static Status wait(Answer& answer, const Deadline& deadline);

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] unsigned index() const { return index_; }

 private:
  enum class State { kParked, kRunning, kStopped, kQuit };
  enum class Verb { kRun, kPark, kCall, kNap };
  struct Message {
    Verb verb;
    std::function<Status()> function;
    std::promise<Status> answer;
    std::chrono::microseconds nap{};
  };

  Vcpu(UniqueFd fd, unsigned index, kvm_run* run, std::uint32_t run_bytes, const VcpuEnvironment& environment);
  Answer post(Verb verb, std::function<Status()> function);
  void kick();
  void thread_main();
  State parked();
  State running();
  State handle_running(Message& message);
  State stopped();
  State wait_in(State here);
  State enter_guest();
  State stop(VcpuStop::Kind kind, std::string report);

  UniqueFd fd_;
  unsigned index_;
  kvm_run* run_;  // shared with KVM; immediate_exit may be set by any thread
  std::uint32_t run_bytes_;
  const VcpuEnvironment& environment_;
  Mailbox<Message> mailbox_;
  std::atomic<bool> quitting_{false};
  std::mutex end_mutex_;
  bool ended_ = false;  // guarded by end_mutex_: the thread may no longer be signalled
  std::thread thread_;
};

}  // namespace fvmm::vmm
