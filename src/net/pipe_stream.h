// A connection inside one process, with a script of what goes wrong: for tests of whatever speaks over a Stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <utility>

#include "base/units.h"
#include "net/stream.h"

namespace fvmm::net {

/// What befalls the bytes of one direction. Byte counts are from the start of the connection.
struct PipeScript {
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
  /// Exactly this many bytes pass, then the whole connection is cut, both directions: what has passed can still be
  /// received, everything else fails with kUnavailable. 0 cuts before the first byte.
  std::uint64_t cut_after_bytes = kNever;
  /// Bytes past this number are not delivered before PipeStream::unstall(): the receiver waits, and the sender too once
  /// the buffer is full. Nothing is lost.
  std::uint64_t stall_after_bytes = kNever;
};

/// One end of an in-memory connection, with Channel's behaviour at its edges: a started send goes on while its owner
/// receives or does something else (the peer pulls it through the buffer), a call after an error fails with
/// kUnavailable, destroying an end closes it (what it had handed over can still be received, and a started but
/// unfinished send is dropped).
///
///   auto [source, destination] = PipeStream::make({.cut_after_bytes = 1000});
///   ... run both sides, each on its own thread ...
///   source->sent_bytes()   // length of a whole conversation: try a cut at each of 0 ... that
///
/// Owner of an end: one thread. cancel(), cut(), unstall() and sent_bytes(): any thread.
class PipeStream final : public Stream {
 public:
  static constexpr std::size_t kCapacityBytes = 256 * kKiB;
  using Pair = std::pair<std::unique_ptr<PipeStream>, std::unique_ptr<PipeStream>>;

  /// @param forward   script of the direction from the first end to the second
  /// @param backward  script of the direction from the second end to the first
  /// @param capacity_bytes  of the buffer of each direction; not 0
  static Pair make(PipeScript forward = {}, PipeScript backward = {}, std::size_t capacity_bytes = kCapacityBytes);
  ~PipeStream() override;
  PipeStream(const PipeStream&) = delete;
  PipeStream& operator=(const PipeStream&) = delete;
  PipeStream(PipeStream&&) = delete;
  PipeStream& operator=(PipeStream&&) = delete;

  Status start_send(std::span<const iovec> parts, const Deadline& deadline) override;
  Status finish_send(const Deadline& deadline) override;
  Status receive(std::span<const iovec> parts, const Deadline& deadline) override;
  using Stream::receive;
  void cancel() override;
  [[nodiscard]] bool closed_by_peer() const override;

  /// Cuts the connection now, as the script would.
  void cut();
  /// Ends a stall of the bytes that this end sends.
  void unstall();
  /// Bytes that this end has put into the connection.
  [[nodiscard]] std::uint64_t sent_bytes() const;

 private:
  struct Direction;
  struct Link;
  PipeStream(std::shared_ptr<Link> link, int end);
  Direction& outgoing() const;
  Direction& incoming() const;
  Status usable() const;
  Status broken(Error error);

  std::shared_ptr<Link> link_;
  const int end_;  // 0 or 1
};

}  // namespace fvmm::net
