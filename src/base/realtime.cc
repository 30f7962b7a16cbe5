#include "base/realtime.h"

#include <pthread.h>
#include <sched.h>

namespace fvmm {

ScopedFifo::ScopedFifo() noexcept {
  sched_param param{};
  param.sched_priority = 1;
  // RESET_ON_FORK: threads started meanwhile stay ordinary.
  raised_ = ::pthread_setschedparam(::pthread_self(), SCHED_FIFO | SCHED_RESET_ON_FORK, &param) == 0;
}

ScopedFifo::~ScopedFifo() {
  if (!raised_) return;
  const sched_param param{};
  // Taking RESET_ON_FORK back needs CAP_SYS_NICE, and does no good; without that this thread would stay as it is.
  (void)::pthread_setschedparam(::pthread_self(), SCHED_OTHER | SCHED_RESET_ON_FORK, &param);
}

}  // namespace fvmm
