#include "base/realtime.h"

#include <gtest/gtest.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

namespace fvmm {
namespace {

int policy() {
  return ::sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;
}

/// This thread is an ordinary user's that may use real-time priority 1.
void become_ordinary() {
  rlimit limit{};
  ::getrlimit(RLIMIT_RTPRIO, &limit);
  const rlimit raised{.rlim_cur = 1, .rlim_max = std::max<rlim_t>(limit.rlim_max, 1)};
  (void)::setrlimit(RLIMIT_RTPRIO, &raised);
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  const std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3> none{};
  ASSERT_EQ(::syscall(SYS_capset, &header, none.data()), 0);
}

TEST(ScopedFifo, EndsAlsoForAThreadWithoutCapabilities) {
  std::thread([] {  // capabilities are a thread's
    become_ordinary();
    bool raised = false;
    for (int again = 0; again < 2; ++again) {
      {
        const ScopedFifo fifo;
        raised = policy() == SCHED_FIFO;
      }
      EXPECT_EQ(policy(), SCHED_OTHER);
    }
    if (!raised) GTEST_SKIP() << "real-time priority is not permitted here";
  })
      .join();
}

}  // namespace
}  // namespace fvmm
