// Where a scattered transfer stands: which parts are left, and how far into the first of them.
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"

namespace fvmm::net {

/// Most parts one sendmsg or recvmsg takes (UIO_MAXIOV, readv(2)); longer arrays go in several calls.
inline constexpr std::size_t kIovecsMax = 1024;

/// A private copy of an iovec array (never of the bytes) that remembers what has been transferred. Keeps its capacity
/// from one transfer to the next. Owner: one Stream. Thread: the owner's.
class IovecCursor {
 public:
  void assign(std::span<const iovec> parts) {
    parts_.clear();
    total_ = 0;
    for (const iovec& part : parts) {
      if (part.iov_len == 0) continue;  // so that a window never consists of nothing, which reads as end of stream
      parts_.push_back(part);
      total_ += part.iov_len;
    }
    next_ = 0;
    left_ = total_;
  }
  void clear() { assign({}); }

  [[nodiscard]] bool done() const { return left_ == 0; }
  [[nodiscard]] std::uint64_t left() const { return left_; }    // bytes
  [[nodiscard]] std::uint64_t total() const { return total_; }  // bytes
  [[nodiscard]] std::uint64_t moved() const { return total_ - left_; }

  /// The parts of the next call: at most kIovecsMax, the first one already shortened. Valid until advance().
  [[nodiscard]] std::span<iovec> window() {
    return std::span(parts_).subspan(next_, std::min(parts_.size() - next_, kIovecsMax));
  }

  /// Takes `bytes` off the front: what a call has reported, which may end in the middle of a part.
  void advance(std::uint64_t bytes) {
    FVMM_CHECK(bytes <= left_, "more bytes transferred than were asked for");
    left_ -= bytes;
    while (bytes > 0) {
      iovec& part = parts_[next_];
      const std::size_t step = std::min<std::uint64_t>(bytes, part.iov_len);
      part.iov_base = static_cast<std::byte*>(part.iov_base) + step;
      part.iov_len -= step;
      bytes -= step;
      if (part.iov_len == 0) ++next_;
    }
  }

 private:
  std::vector<iovec> parts_;
  std::size_t next_ = 0;
  std::uint64_t left_ = 0;
  std::uint64_t total_ = 0;
};

}  // namespace fvmm::net
