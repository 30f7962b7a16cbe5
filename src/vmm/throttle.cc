#include "vmm/throttle.h"

#include <pthread.h>

#include "base/check.h"

namespace fvmm::vmm {
namespace {

constexpr std::chrono::milliseconds kNapWait{100};  // for a vCPU to leave the guest; a busy host takes some ms

}  // namespace

void Throttle::set(unsigned percent) {
  FVMM_CHECK(percent <= kThrottlePercentMax, "a guest is never held back for good");
  {
    const std::lock_guard lock(mutex_);
    percent_ = percent;
  }
  changed_.notify_all();
  if (percent == 0 && thread_.joinable()) thread_.join();
  if (percent != 0 && !thread_.joinable()) thread_ = std::thread([this] { run(); });
}

// One nap at a time: the next is sent when the last has begun and its length has passed, so that none pile up.
void Throttle::run() {
  ::pthread_setname_np(::pthread_self(), "throttle");
  std::unique_lock lock(mutex_);
  while (percent_ != 0) {
    const auto nap = kThrottleSlice * percent_ / 100;
    changed_.wait_for(lock, kThrottleSlice - nap, [this] { return percent_ == 0; });
    if (percent_ == 0) return;
    lock.unlock();
    std::vector<Vcpu::Answer> begun;
    for (const auto& vcpu : vcpus_) begun.push_back(vcpu->nap(nap));
    const Deadline wait = Deadline::after(kNapWait);
    for (auto& answer : begun) (void)Vcpu::wait(answer, wait);
    lock.lock();
    changed_.wait_for(lock, nap, [this] { return percent_ == 0; });
  }
}

}  // namespace fvmm::vmm
