// A connection as the protocols see it: bytes in order, deadlines on every wait. io_uring in production, a script in
// tests.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/clock.h"
#include "base/result.h"

namespace fvmm::net {

/// A connected byte stream. Owner: one thread; only cancel() may come from another.
/// After any error the stream is broken and every further call fails with kUnavailable.
class Stream {
 public:
  Stream() = default;
  virtual ~Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  Stream(Stream&&) = delete;
  Stream& operator=(Stream&&) = delete;

  /// Starts sending all parts in order (gathered, not copied) and returns. The bytes must stay until finish_send().
  /// At most one send is in flight: a second start finishes the first.
  virtual Status start_send(std::span<const iovec> parts, const Deadline& deadline) = 0;
  /// Waits until everything started has been handed to the kernel.
  virtual Status finish_send(const Deadline& deadline) = 0;
  /// Fills every part completely. kUnavailable "closed by peer" at end of stream, kDeadlineExceeded, kCancelled.
  virtual Status receive(std::span<const iovec> parts, const Deadline& deadline) = 0;
  /// Whether the peer has closed its side; bytes it sent before may still be waiting. Never waits.
  [[nodiscard]] virtual bool closed_by_peer() const = 0;
  /// Makes the owner's current and later calls end with kCancelled. Thread: any.
  virtual void cancel() = 0;

  Status send(std::span<const iovec> parts, const Deadline& deadline);  // start, then finish
  Status send(std::span<const std::byte> bytes, const Deadline& deadline);
  Status receive(std::span<std::byte> bytes, const Deadline& deadline);
};

}  // namespace fvmm::net
