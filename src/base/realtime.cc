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
  (void)::pthread_setschedparam(::pthread_self(), SCHED_OTHER, &param);
}

}  // namespace fvmm
