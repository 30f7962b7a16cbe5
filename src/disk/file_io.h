// Reads and writes of files that end later: io_uring in a worker, a seeded disk in tests.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "base/clock.h"
#include "base/result.h"

namespace fvmm::disk {

/// A queue of operations on files. What an operation points to stays alive until it has ended. Owner: one Engine.
/// Thread: one, the disk's I/O thread.
class FileIo {
 public:
  using Ended = std::function<void(std::uint64_t token, int result)>;  // as in a cqe: bytes, or -errno

  FileIo() = default;
  virtual ~FileIo() = default;
  FileIo(const FileIo&) = delete;
  FileIo& operator=(const FileIo&) = delete;
  FileIo(FileIo&&) = delete;
  FileIo& operator=(FileIo&&) = delete;

  [[nodiscard]] virtual std::size_t operations_max() const = 0;  // under way at once; the engine queues what is more
  virtual void read(int fd, std::span<const iovec> into, std::uint64_t offset, std::uint64_t token) = 0;
  virtual void write(int fd, std::span<const iovec> from, std::uint64_t offset, std::uint64_t token) = 0;
  virtual void sync(int fd, std::uint64_t token) = 0;  // fdatasync(2)
  virtual void allocate(int fd, int mode, std::uint64_t offset, std::uint64_t bytes,
                        std::uint64_t token) = 0;  // fallocate(2)
  /// Hands over what was queued. Errors: kIo.
  virtual Status submit() = 0;
  /// Calls `ended` for every operation that has; waits for one until the deadline, no longer. Errors: kIo.
  virtual Status poll(const Deadline& deadline, const Ended& ended) = 0;
  /// Becomes readable when an operation has ended; -1 where there is nothing to wait on.
  [[nodiscard]] virtual int wait_fd() const = 0;
};

/// Over one io_uring without registered buffers. kUnavailable where io_uring is forbidden.
Result<std::unique_ptr<FileIo>> make_ring_io();

}  // namespace fvmm::disk
