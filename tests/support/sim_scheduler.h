// Threads and time of a simulated world: one thread runs at a time, a seed says which, and time jumps to the next
// wait's end when nobody can run. support/sim_threads.h puts it under the C library's threads and clocks.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace fvmm::testing {

/// Thrown out of whatever a simulated process does next after it was killed. Its memory goes, its disk stays.
struct SimKilled {};

/// ns since the world began; an hour of monotonic time is behind it, so that nothing is near zero.
using SimTime = std::int64_t;
inline constexpr SimTime kSimNever = std::numeric_limits<SimTime>::max();
inline constexpr SimTime kSimEpoch = 3'600'000'000'000;
inline constexpr SimTime kSimMs = 1'000'000;
inline constexpr std::uint64_t kSimSwitchesMax = 400'000;  // of one seed: more is a livelock

/// Hands the right to run to one thread.
class SimBaton {
 public:
  void post() {
    word_.store(1, std::memory_order_release);
    ::syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
  void wait() {
    while (word_.exchange(0, std::memory_order_acquire) == 0) {
      ::syscall(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
    }
  }

 private:
  std::atomic<int> word_{0};
};

struct SimThread {
  enum class State { kReady, kRunning, kBlocked, kDone };
  State state = State::kReady;
  const void* key = nullptr;  // what it waits for
  SimTime wake = kSimNever;   // and until when
  bool notified = false;
  int host = 0;   // whose process it belongs to; 0: the world's own
  int epoch = 0;  // which life of that process
  SimBaton baton;
};

inline thread_local SimThread* sim_self = nullptr;  // null on threads outside of any simulation

/// All of it is touched only by the thread that runs, or by the outside before and after run().
class SimScheduler {
 public:
  explicit SimScheduler(std::uint64_t seed) : seed_(seed), random_(seed * 0x9e3779b97f4a7c15ULL + 1) {}

  /// Runs `body` as the first simulated thread and returns when it and all its children have ended.
  template <class RunThread>
  void run(std::function<void()> body, RunThread start) {
    current = this;
    SimThread* const root = add();
    start(root, std::move(body));
    root->state = SimThread::State::kRunning;
    root->baton.post();
    outside_.wait();
    current = nullptr;
  }

  [[nodiscard]] SimTime now() const { return now_; }
  std::uint64_t random() { return random_(); }
  bool chance(unsigned in) { return random_() % in == 0; }
  [[nodiscard]] std::uint64_t switches() const { return switches_; }
  void advance(SimTime by) { now_ += by; }

  SimThread* add() {
    threads_.push_back(std::make_unique<SimThread>());
    return threads_.back().get();
  }
  /// Others may run here.
  void yield() {
    sim_self->state = SimThread::State::kReady;
    go_on();
  }
  /// Until notify() of the key or `until`; true: notified.
  bool block(const void* key, SimTime until) {
    SimThread& self = *sim_self;
    self.state = SimThread::State::kBlocked;
    self.key = key;
    self.wake = until;
    self.notified = false;
    go_on();
    return self.notified;
  }
  void notify(const void* key, bool all) {
    for (auto& thread : threads_) {
      if (thread->state != SimThread::State::kBlocked || thread->key != key) continue;
      wake(*thread, true);
      if (!all) return;
    }
  }
  /// Every wait of these processes' threads ends now: they find out by themselves that they are dead.
  void notify_host(int host) {
    for (auto& thread : threads_) {
      if (thread->state == SimThread::State::kBlocked && thread->host == host) wake(*thread, true);
    }
  }
  /// The calling thread ends. It does not touch the scheduler afterwards.
  void leave() {
    SimThread* const self = sim_self;
    sim_self = nullptr;
    self->state = SimThread::State::kDone;
    notify(self, true);
    SimThread* const next = pick();
    if (next == nullptr) {
      outside_.post();
    } else {
      next->baton.post();
    }
  }
  [[nodiscard]] static bool done(const SimThread& thread) { return thread.state == SimThread::State::kDone; }

  static inline SimScheduler* current = nullptr;

 private:
  static void wake(SimThread& thread, bool notified) {
    thread.state = SimThread::State::kReady;
    thread.key = nullptr;
    thread.notified = notified;
  }
  void go_on() {
    SimThread* const self = sim_self;
    SimThread* const next = pick();
    if (next == nullptr) stuck("everybody waits, and nobody for a time");
    if (next == self) return;
    next->baton.post();
    self->baton.wait();
  }
  /// The next thread to run, marked as running; null when all have ended.
  SimThread* pick() {
    if (++switches_ > kSimSwitchesMax) stuck("no end after so many steps");
    ready_.clear();
    SimTime first = kSimNever;
    bool any = false;
    for (auto& thread : threads_) {
      if (thread->state == SimThread::State::kDone) continue;
      any = true;
      if (thread->state == SimThread::State::kBlocked && thread->wake <= now_) wake(*thread, false);
      if (thread->state == SimThread::State::kReady) ready_.push_back(thread.get());
      if (thread->state == SimThread::State::kBlocked) first = std::min(first, thread->wake);
    }
    if (!any) return nullptr;
    if (ready_.empty()) {
      if (first == kSimNever) stuck("everybody waits, and nobody for a time");
      now_ = first;
      --switches_;
      return pick();
    }
    SimThread* const next = ready_.size() == 1 ? ready_[0] : ready_[random_() % ready_.size()];
    next->state = SimThread::State::kRunning;
    return next;
  }
  [[noreturn]] void stuck(const char* why) const {
    std::fprintf(stderr, "FVMM_SIM_SEED=%llu: %s\n", static_cast<unsigned long long>(seed_), why);
    std::abort();
  }

  const std::uint64_t seed_;
  std::mt19937_64 random_;
  SimTime now_ = kSimEpoch;
  std::uint64_t switches_ = 0;
  std::vector<std::unique_ptr<SimThread>> threads_;
  std::vector<SimThread*> ready_;
  SimBaton outside_;
};

}  // namespace fvmm::testing
