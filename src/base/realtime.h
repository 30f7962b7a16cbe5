#pragma once

namespace fvmm {

/// SCHED_FIFO for the calling thread while it lives, where allowed (CAP_SYS_NICE or RLIMIT_RTPRIO); otherwise nothing.
/// For the few milliseconds of a pause: a waiting thread is then woken before the load of the host.
class ScopedFifo {
 public:
  ScopedFifo() noexcept;
  ~ScopedFifo();
  ScopedFifo(const ScopedFifo&) = delete;
  ScopedFifo& operator=(const ScopedFifo&) = delete;
  ScopedFifo(ScopedFifo&&) = delete;
  ScopedFifo& operator=(ScopedFifo&&) = delete;

 private:
  bool raised_ = false;
};

}  // namespace fvmm
