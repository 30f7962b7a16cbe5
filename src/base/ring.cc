#include "base/ring.h"

#include <cerrno>

#include "base/check.h"

namespace fvmm {

Result<std::unique_ptr<Ring>> Ring::make(unsigned entries) {
  std::unique_ptr<Ring> ring(new Ring);
  const int result = io_uring_queue_init(entries, &ring->ring_, 0);
  if (result == 0) return ring;
  ring->ring_.ring_fd = -1;
  if (result == -ENOSYS || result == -EPERM) {
    return Error(Errc::kUnavailable, "io_uring_setup (see kernel.io_uring_disabled and the seccomp filter)", -result);
  }
  return Error(Errc::kIo, "io_uring_setup", -result);
}

Ring::~Ring() {
  if (ring_.ring_fd >= 0) io_uring_queue_exit(&ring_);
}

io_uring_sqe& Ring::next() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  FVMM_CHECK(sqe != nullptr, "more requests queued than the ring was made for");
  return *sqe;
}

Status Ring::submit() {
  const int result = io_uring_submit(&ring_);
  if (result < 0 && result != -EINTR) return Error(Errc::kIo, "io_uring_enter", -result);
  return {};
}

Result<bool> Ring::wait(const Deadline& deadline) {
  const auto left = deadline.left();
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
  __kernel_timespec timeout{.tv_sec = seconds.count(), .tv_nsec = (left - seconds).count()};
  io_uring_cqe* cqe = nullptr;
  const int result = io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr);
  if (cqe != nullptr) return true;
  if (result >= 0 || result == -ETIME || result == -EINTR) return false;
  return Error(Errc::kIo, "io_uring_enter", -result);
}

}  // namespace fvmm
