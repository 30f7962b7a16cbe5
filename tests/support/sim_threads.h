// The C library's threads, locks, waits, clocks and randomness, as a simulated thread sees them: this header *defines*
// pthread_create() and the others below, so that every call in the program, of libstdc++ too, lands here first. On any
// other thread they do what they always do. Include it in exactly one file of a program. It needs nothing of the code
// under test: std::thread, std::async, std::mutex, std::condition_variable, Deadline and sleep_for are all made of
// these.
#pragma once

#include <dlfcn.h>
#include <pthread.h>
#include <sys/random.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "support/sim_scheduler.h"

namespace fvmm::testing {

/// The next definition of a function after ours. Old versions of the condition variables have another layout.
template <class Function>
Function real(const char* name, const char* version = nullptr) {
  void* found = version != nullptr ? ::dlvsym(RTLD_NEXT, name, version) : nullptr;
  if (found == nullptr) found = ::dlsym(RTLD_NEXT, name);
  return reinterpret_cast<Function>(found);
}
#define FVMM_REAL(function, ...) \
  static const auto next = ::fvmm::testing::real<decltype(&::function)>(#function __VA_OPT__(, ) __VA_ARGS__)

struct SimStart {
  SimThread* thread;
  std::function<void()> body;
};
inline std::map<pthread_t, SimThread*> sim_joinable;  // of the running simulation

inline void* sim_thread_main(void* argument) {
  const std::unique_ptr<SimStart> start(static_cast<SimStart*>(argument));
  start->thread->baton.wait();
  sim_self = start->thread;
  start->body();
  start->body = nullptr;  // its captures go while we still have the right to run
  SimScheduler::current->leave();
  return nullptr;
}

inline int sim_create(pthread_t* id, const pthread_attr_t* attributes, SimThread* thread, std::function<void()> body) {
  FVMM_REAL(pthread_create);
  auto start = std::make_unique<SimStart>(SimStart{thread, std::move(body)});
  const int error = next(id, attributes, sim_thread_main, start.get());
  if (error == 0) (void)start.release();  // NOLINT(bugprone-unused-return-value): the thread has it
  return error;
}

/// Runs `body` in a simulation of its own and waits for its end.
inline void sim_run(SimScheduler& scheduler, std::function<void()> body) {
  pthread_t root{};
  scheduler.run(std::move(body), [&root](SimThread* thread, std::function<void()> run) {
    if (sim_create(&root, nullptr, thread, std::move(run)) != 0) std::abort();
  });
  FVMM_REAL(pthread_join);
  next(root, nullptr);
  sim_joinable.clear();
}

inline SimTime sim_time(const timespec& at) {
  return static_cast<SimTime>(at.tv_sec) * 1'000'000'000 + at.tv_nsec;
}
/// Under the simulation nothing else runs between the unlock and the wait.
inline int sim_wait(pthread_cond_t* condition, pthread_mutex_t* mutex, SimTime until) {
  ::pthread_mutex_unlock(mutex);
  const bool notified = SimScheduler::current->block(condition, until);
  ::pthread_mutex_lock(mutex);
  return notified ? 0 : ETIMEDOUT;
}

}  // namespace fvmm::testing

// NOLINTBEGIN(misc-definitions-in-headers): one file of a program includes this
extern "C" {

int pthread_create(pthread_t* id, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_create);
  if (sim_self == nullptr) return next(id, attributes, run, argument);
  SimThread* const thread = SimScheduler::current->add();
  thread->host = sim_self->host;
  thread->epoch = sim_self->epoch;
  const int error = sim_create(id, attributes, thread, [run, argument] {
    try {
      run(argument);
    } catch (const SimKilled&) {  // with its process
    }
  });
  if (error == 0) sim_joinable[*id] = thread;
  return error;
}

int pthread_join(pthread_t id, void** result) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_join);
  if (sim_self != nullptr) {
    const auto found = sim_joinable.find(id);
    if (found != sim_joinable.end()) {
      SimThread* const thread = found->second;
      sim_joinable.erase(found);
      while (!SimScheduler::done(*thread)) SimScheduler::current->block(thread, kSimNever);
    }
  }
  return next(id, result);
}

int pthread_mutex_lock(pthread_mutex_t* mutex) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_mutex_lock);
  if (sim_self == nullptr) return next(mutex);
  for (;;) {
    const int error = ::pthread_mutex_trylock(mutex);
    if (error != EBUSY) return error;
    SimScheduler::current->block(mutex, kSimNever);
  }
}

int pthread_mutex_unlock(pthread_mutex_t* mutex) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_mutex_unlock);
  const int error = next(mutex);
  if (sim_self != nullptr) SimScheduler::current->notify(mutex, true);
  return error;
}

int pthread_cond_wait(pthread_cond_t* condition, pthread_mutex_t* mutex) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_cond_wait, "GLIBC_2.3.2");
  return sim_self == nullptr ? next(condition, mutex) : sim_wait(condition, mutex, kSimNever);
}

int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const timespec* until) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_cond_timedwait, "GLIBC_2.3.2");
  return sim_self == nullptr ? next(condition, mutex, until) : sim_wait(condition, mutex, sim_time(*until));
}

int pthread_cond_clockwait(pthread_cond_t* condition, pthread_mutex_t* mutex, clockid_t clock, const timespec* until) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_cond_clockwait);
  return sim_self == nullptr ? next(condition, mutex, clock, until) : sim_wait(condition, mutex, sim_time(*until));
}

int pthread_cond_signal(pthread_cond_t* condition) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_cond_signal, "GLIBC_2.3.2");
  if (sim_self == nullptr) return next(condition);
  SimScheduler::current->notify(condition, false);
  return 0;
}

int pthread_cond_broadcast(pthread_cond_t* condition) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_cond_broadcast, "GLIBC_2.3.2");
  if (sim_self == nullptr) return next(condition);
  SimScheduler::current->notify(condition, true);
  return 0;
}

/// One clock for all: in a simulation no host's clock differs from another's.
int clock_gettime(clockid_t clock, timespec* out) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(clock_gettime);
  if (sim_self == nullptr) return next(clock, out);
  const SimTime now = SimScheduler::current->now();
  *out = {.tv_sec = now / 1'000'000'000, .tv_nsec = now % 1'000'000'000};
  return 0;
}

int nanosleep(const timespec* wait, timespec* left) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(nanosleep);
  if (sim_self == nullptr) return next(wait, left);
  SimScheduler::current->block(nullptr, SimScheduler::current->now() + sim_time(*wait));
  return 0;
}

ssize_t getrandom(void* out, size_t bytes, unsigned flags) {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(getrandom);
  if (sim_self == nullptr) return next(out, bytes, flags);
  for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(out)[i] = SimScheduler::current->random() & 0xffU;
  return static_cast<ssize_t>(bytes);
}

/// A simulated thread stays as it is: there is nothing to be faster than.
int pthread_setschedparam(pthread_t id, int policy, const sched_param* param) noexcept {
  using namespace fvmm::testing;  // NOLINT(google-build-using-namespace)
  FVMM_REAL(pthread_setschedparam);
  return sim_self == nullptr ? next(id, policy, param) : EPERM;
}

}  // extern "C"
// NOLINTEND(misc-definitions-in-headers)
