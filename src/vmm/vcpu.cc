#include "vmm/vcpu.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>

#include "base/check.h"
#include "vmm/exits.h"

namespace fvmm::vmm {
namespace {

constexpr std::size_t kMessagesMax = 16;
const int kKickSignal = SIGRTMIN;

// The signal only has to end KVM_RUN with EINTR; without SA_RESTART an empty handler does that.
void install_kick_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    sigemptyset(&action.sa_mask);
    FVMM_CHECK(::sigaction(kKickSignal, &action, nullptr) == 0, "SIGRTMIN can be handled");
  });
}

// KVM_RUN's own refusals. A page that cannot be faulted in is EFAULT, or EHWPOISON.
std::string refused_run(int error) {
  std::string why = Error(Errc::kIo, "KVM_RUN", error).message();
  if (error != EFAULT && error != EHWPOISON) return why;
  return "a page of the guest's memory cannot be read; of a VM on a template: check that with \"fvmmctl template "
         "verify\", and its disk (" +
         why + ")";
}

void set_immediate_exit(kvm_run* run, std::uint8_t value) {
  std::atomic_ref<std::uint8_t>(run->immediate_exit).store(value, std::memory_order_seq_cst);
}

}  // namespace

Result<std::unique_ptr<Vcpu>> Vcpu::create(int vm_fd, unsigned index, const KvmFeatures& features,
                                           const VcpuEnvironment& environment) {
  install_kick_handler();
  UniqueFd fd(FVMM_TRY(kvm_ioctl(vm_fd, KVM_CREATE_VCPU, "KVM_CREATE_VCPU", static_cast<unsigned long>(index))));
  void* const run = ::mmap(nullptr, features.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (run == MAP_FAILED) return Error(Errc::kIo, "mmap kvm_run", errno);
  return std::unique_ptr<Vcpu>(
      new Vcpu(std::move(fd), index, static_cast<kvm_run*>(run), features.run_bytes, environment));
}

Vcpu::Vcpu(UniqueFd fd, unsigned index, kvm_run* run, std::uint32_t run_bytes, const VcpuEnvironment& environment)
    : fd_(std::move(fd)),
      index_(index),
      run_(run),
      run_bytes_(run_bytes),
      environment_(environment),
      mailbox_(kMessagesMax),
      thread_([this] { thread_main(); }) {}

// Needs no room in the mailbox: what still waits there is dropped, and its askers find a broken promise.
void Vcpu::end() {
  const std::lock_guard lock(end_mutex_);
  if (ended_) return;
  quitting_ = true;
  mailbox_.close();
  kick();
  thread_.join();
  ended_ = true;
}

void Vcpu::nudge() {
  const std::lock_guard lock(end_mutex_);
  if (!ended_) kick();
}

Vcpu::~Vcpu() {
  end();
  ::munmap(run_, run_bytes_);
}

Vcpu::Answer Vcpu::post(Verb verb, std::function<Status()> function) {
  Message message{verb, std::move(function), {}, {}};
  Answer answer = message.answer.get_future();
  if (!mailbox_.try_send(std::move(message))) {
    message.answer.set_value(Error(Errc::kResourceExhausted, fmt::format("vCPU {}: mailbox is full", index_)));
  }
  return answer;
}

Vcpu::Answer Vcpu::run() {
  return post(Verb::kRun, {});
}

Vcpu::Answer Vcpu::park() {
  Answer answer = post(Verb::kPark, {});
  kick();
  return answer;
}

Vcpu::Answer Vcpu::call(std::function<Status()> function) {
  return post(Verb::kCall, std::move(function));
}

Vcpu::Answer Vcpu::nap(std::chrono::microseconds length) {
  Message message{Verb::kNap, {}, {}, length};
  Answer answer = message.answer.get_future();
  if (!mailbox_.try_send(std::move(message))) {
    message.answer.set_value(Error(Errc::kResourceExhausted, fmt::format("vCPU {}: mailbox is full", index_)));
    return answer;
  }
  kick();
  return answer;
}

Status Vcpu::wait(Answer& answer, const Deadline& deadline) {
  if (answer.wait_until(deadline.at()) != std::future_status::ready) {
    return Error(Errc::kDeadlineExceeded, "a vCPU thread did not answer in time");
  }
  return answer.get();
}

// The message is in the mailbox before the flag is set, and the thread clears the flag before it looks there: whatever
// ends KVM_RUN, the message is seen.
void Vcpu::kick() {
  set_immediate_exit(run_, 1);
  ::pthread_kill(thread_.native_handle(), kKickSignal);
}

void Vcpu::thread_main() {
  ::pthread_setname_np(::pthread_self(), fmt::format("vcpu{}", index_).c_str());
  State state = State::kParked;
  while (state != State::kQuit) {
    switch (state) {
      case State::kParked:
        state = parked();
        break;
      case State::kRunning:
        state = running();
        break;
      case State::kStopped:
        state = stopped();
        break;
      case State::kQuit:
        break;
    }
  }
}

Vcpu::State Vcpu::parked() {
  return wait_in(State::kParked);
}
Vcpu::State Vcpu::stopped() {
  return wait_in(State::kStopped);
}

Vcpu::State Vcpu::wait_in(State here) {
  std::optional<Message> message = mailbox_.receive();
  if (!message || quitting_) return State::kQuit;
  switch (message->verb) {
    case Verb::kRun:
      if (here == State::kStopped) {
        message->answer.set_value(Error(Errc::kFailedPrecondition, fmt::format("vCPU {} has stopped", index_)));
        return here;
      }
      if (Status may = environment_.fence->check(); !may) {
        message->answer.set_value(std::move(may));
        return here;
      }
      message->answer.set_value({});
      return State::kRunning;
    case Verb::kPark:
    case Verb::kNap:
      message->answer.set_value({});
      return here;
    case Verb::kCall:
      message->answer.set_value(message->function());
      return here;
  }
  return here;
}

Vcpu::State Vcpu::running() {
  if (quitting_) return State::kQuit;
  if (environment_.fence->closed()) return State::kParked;  // its owner may believe that it runs
  std::optional<Message> message = mailbox_.try_receive();
  if (message) return handle_running(*message);
  if (environment_.machine_stopped != nullptr && *environment_.machine_stopped) return State::kStopped;
  return enter_guest();
}

Vcpu::State Vcpu::handle_running(Message& message) {
  switch (message.verb) {
    case Verb::kRun:
      message.answer.set_value({});
      return State::kRunning;
    case Verb::kPark:
      message.answer.set_value({});
      return State::kParked;
    case Verb::kCall:
      message.answer.set_value(Error(Errc::kFailedPrecondition, fmt::format("vCPU {} is running", index_)));
      return State::kRunning;
    case Verb::kNap: {
      message.answer.set_value({});
      std::optional<Message> sooner = mailbox_.receive(Deadline::after(message.nap));
      return sooner ? handle_running(*sooner) : State::kRunning;
    }
  }
  return State::kRunning;
}

// Stays here exit after exit; returns only on a kick or a stop.
Vcpu::State Vcpu::enter_guest() {
  for (;;) {
    if (::ioctl(fd_.get(), KVM_RUN, 0) == 0) {
      if (auto stop_reason = handle_exit(fd_.get(), *run_, environment_)) {
        return stop(stop_reason->kind, std::move(stop_reason->report));
      }
      continue;
    }
    if (errno == EINTR || errno == EAGAIN) {
      set_immediate_exit(run_, 0);
      return State::kRunning;
    }
    const int error = errno;
    return stop(VcpuStop::Kind::kFailed, describe_stop(fd_.get(), *environment_.memory, refused_run(error)));
  }
}

Vcpu::State Vcpu::stop(VcpuStop::Kind kind, std::string report) {
  environment_.on_stop(index_, VcpuStop{kind, std::move(report)});
  return State::kStopped;
}

}  // namespace fvmm::vmm
