// Page frames from one connection into guest memory: every length and index is checked before a byte is written.
#pragma once

#include <cstdint>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "memory/dirty.h"
#include "memory/guest_memory.h"
#include "migration/page_table.h"
#include "net/stream.h"

namespace fvmm::migration {

struct ReceiveCounters {
  std::uint64_t frames = 0;
  std::uint64_t pages = 0;
  std::uint64_t bytes = 0;
};

/// Receives until the end frame. Owner: one thread; several receivers may fill one memory, each its own pages.
class PageReceiver {
 public:
  /// `fresh_zero`: nothing was ever written to this memory and it reads as zero, so that a page's first zero needs no
  /// write (and no memory).
  PageReceiver(net::Stream& stream, memory::GuestMemory& memory, bool fresh_zero);
  /// kDataLoss for a frame that makes no sense; the stream's own errors.
  Status run(const Deadline& deadline);
  [[nodiscard]] const ReceiveCounters& counters() const { return counters_; }
  [[nodiscard]] const memory::Bitmap& written() const { return written_; }  // pages that may differ from the base now

 private:
  Status take_frame(const net::FrameHeader& header, const Deadline& deadline);
  void zero(memory::PageRange range);
  Status fill(std::span<const PageRun> runs, const Deadline& deadline);

  net::Stream& stream_;
  memory::GuestMemory& memory_;
  bool fresh_zero_;
  memory::Bitmap written_;
  std::vector<std::byte> table_;
  std::vector<iovec> parts_;
  ReceiveCounters counters_;
};

}  // namespace fvmm::migration
