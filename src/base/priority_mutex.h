#pragma once

#include <pthread.h>

#include "base/check.h"

namespace fvmm {

/// A mutex whose owner runs with the priority of whoever waits for it: for locks that a SCHED_FIFO thread shares with
/// an ordinary one, which would else be kept from giving the lock back by the load of the host. BasicLockable.
class PriorityMutex {
 public:
  PriorityMutex() {
    pthread_mutexattr_t attributes;
    FVMM_CHECK(::pthread_mutexattr_init(&attributes) == 0, "mutex attributes");
    FVMM_CHECK(::pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT) == 0, "priority inheritance");
    FVMM_CHECK(::pthread_mutex_init(&mutex_, &attributes) == 0, "mutex");
    (void)::pthread_mutexattr_destroy(&attributes);
  }
  ~PriorityMutex() { (void)::pthread_mutex_destroy(&mutex_); }
  PriorityMutex(const PriorityMutex&) = delete;
  PriorityMutex& operator=(const PriorityMutex&) = delete;
  PriorityMutex(PriorityMutex&&) = delete;
  PriorityMutex& operator=(PriorityMutex&&) = delete;
  void lock() { FVMM_CHECK(::pthread_mutex_lock(&mutex_) == 0, "lock"); }
  void unlock() { FVMM_CHECK(::pthread_mutex_unlock(&mutex_) == 0, "unlock"); }

 private:
  pthread_mutex_t mutex_;
};

}  // namespace fvmm
