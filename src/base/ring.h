// One small io_uring: submission, waiting with a deadline, completions.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "base/result.h"

namespace fvmm {

/// An io_uring without registered buffers, SQPOLL or SINGLE_ISSUER: a channel may be made by one thread and used by the
/// next, and no kernel thread spins for it. Owner: one channel or disk. Thread: one at a time; a request belongs to the
/// thread that submitted it and is cancelled by the kernel when that thread ends.
class Ring {
 public:
  /// @param entries  submission queue size; more are never queued at once
  /// Errors: kUnavailable when the kernel or a seccomp filter forbids io_uring, kIo otherwise.
  static Result<std::unique_ptr<Ring>> make(unsigned entries);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  Ring(Ring&&) = delete;
  Ring& operator=(Ring&&) = delete;

  /// A free submission entry, for io_uring_prep_*. Nothing reaches the kernel before submit() or wait().
  io_uring_sqe& next();
  /// Hands everything queued to the kernel, which tries each request at once. One system call. Errors: kIo.
  Status submit();
  /// Submits and waits for a completion in one system call, io_uring_enter(2) with EXT_ARG. False at the deadline, and
  /// also after a signal: the caller looks at its own clock and asks again. Errors: kIo.
  Result<bool> wait(const Deadline& deadline);
  /// Readable while completions are there: for poll(2) beside other descriptors.
  [[nodiscard]] int fd() const { return ring_.ring_fd; }

  /// Calls `handle(user_data, result)` for every completion that is there; never enters the kernel.
  template <class Handle>
  void reap(Handle&& handle) {
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      const std::uint64_t user_data = cqe->user_data;
      const int result = cqe->res;
      io_uring_cqe_seen(&ring_, cqe);
      handle(user_data, result);
    }
  }

 private:
  Ring() = default;
  io_uring ring_{};
};

}  // namespace fvmm
