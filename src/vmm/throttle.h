// Slows a guest down by giving its vCPUs less than all of the time: for a migration that cannot converge otherwise.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "vmm/vcpu.h"

namespace fvmm::vmm {

inline constexpr std::chrono::microseconds kThrottleSlice{10'000};  // of it a part is slept: short, so that timers live
inline constexpr unsigned kThrottlePercentMax = 99;

/// Sends every vCPU to a nap once a slice, all at about the same time. Its thread exists only while percent > 0.
/// Owner: the VM; every method is the VM's owner's. The vCPUs outlive it.
class Throttle {
 public:
  explicit Throttle(const std::vector<std::unique_ptr<Vcpu>>& vcpus) : vcpus_(vcpus) {}
  ~Throttle() { set(0); }
  Throttle(const Throttle&) = delete;
  Throttle& operator=(const Throttle&) = delete;
  Throttle(Throttle&&) = delete;
  Throttle& operator=(Throttle&&) = delete;
  /// FVMM_CHECKs percent <= kThrottlePercentMax.
  void set(unsigned percent);

 private:
  void run();
  const std::vector<std::unique_ptr<Vcpu>>& vcpus_;
  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned percent_ = 0;  // mutex_
  std::thread thread_;
};

}  // namespace fvmm::vmm
