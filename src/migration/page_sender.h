// Pages from guest memory onto one connection: classified, framed, gathered by the kernel straight from where they lie.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "memory/guest_memory.h"
#include "migration/pacer.h"
#include "migration/page_table.h"
#include "net/stream.h"

namespace fvmm::migration {

struct SendCounters {
  std::uint64_t frames = 0;
  std::uint64_t pages = 0;  // raw and zero
  std::uint64_t zero_pages = 0;
  std::uint64_t bytes = 0;  // on the wire, headers included
};

/// Sends ranges of one memory image over one stream; a frame is in flight while the next is prepared. Owner: one
/// thread.
class PageSender {
 public:
  /// `base` is the image in linear RAM order. It is read while frames are in flight: what the guest changes meanwhile
  /// is dirty again and sent again.
  /// `pacer`, when given, is asked before each frame; it outlives the sender.
  PageSender(net::Stream& stream, const std::byte* base, Pacer* pacer = nullptr);

  /// Sends the pages, in order. On return all of them have been handed to the kernel.
  Status send(std::span<const memory::PageRange> ranges, const Deadline& deadline);
  /// One page whose bytes lie elsewhere than in the image; they must stay until flush().
  Status add(memory::PageIndex page, const std::byte* bytes, const Deadline& deadline);
  /// Hands what add() has gathered to the kernel.
  Status flush(const Deadline& deadline);
  /// Asks the receiver to answer once all pages sent so far lie in its memory; synced() waits for that. Between the two
  /// nothing else is sent.
  Status ask_sync(const Deadline& deadline);
  Status synced(const Deadline& deadline);
  /// No more page frames follow.
  Status send_end(const Deadline& deadline);
  [[nodiscard]] const SendCounters& counters() const { return counters_; }

 private:
  struct Frame {  // double-buffered: one in flight, one in the making
    std::array<std::byte, net::kFrameHeaderBytes> header{};
    std::vector<std::byte> table;
    std::vector<iovec> parts;  // [0] header, [1] table, then payload
    std::uint32_t entries = 0;
    std::uint32_t payload_bytes = 0;
  };

  [[nodiscard]] bool extends(memory::PageIndex page, Encoding encoding) const;
  [[nodiscard]] bool has_room(memory::PageIndex page, Encoding encoding) const;
  void add_payload(const std::byte* page);
  void close_run();
  Status ship(const Deadline& deadline);
  void clear(Frame& frame);

  net::Stream& stream_;
  const std::byte* base_;
  Pacer* pacer_;
  std::array<Frame, 2> frames_;
  unsigned current_ = 0;
  PageRun run_{};  // the entry that grows; count 0: none
  SendCounters counters_;
};

}  // namespace fvmm::migration
