#include "net/pipe_stream.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/check.h"
#include "net/iovec_cursor.h"

namespace fvmm::net {

/// One direction: the sender's parts, then a ring buffer. All fields under Link::mutex.
struct PipeStream::Direction {
  PipeScript script;
  std::vector<std::byte> buffer;
  std::uint64_t accepted = 0;   // bytes ever taken from the sender; the ring's write position
  std::uint64_t delivered = 0;  // bytes ever given to the receiver; its read position
  IovecCursor sending;          // of the sending end; its bytes stay until finish_send()

  bool accept();
  bool deliver(IovecCursor& into);
  [[nodiscard]] bool at_cut() const { return accepted >= script.cut_after_bytes; }
};

/// What both ends share. `changed` is one condition for both ends and directions: this is for tests.
struct PipeStream::Link {
  std::mutex mutex;
  std::condition_variable changed;
  std::array<Direction, 2> directions;  // [e]: what end e sends
  std::array<bool, 2> closed{};         // [e]: end e is gone or gave up
  std::array<bool, 2> cancelled{};
  std::array<std::optional<std::string>, 2> broken_by;  // [e]: end e's first error
  bool cut = false;

  void pump();
};

/// Moves the sender's bytes into the buffer, as far as there is room and the script lets them.
bool PipeStream::Direction::accept() {
  bool moved = false;
  while (!sending.done()) {
    const iovec part = sending.window().front();
    const std::uint64_t used = accepted - delivered;
    const std::size_t at = accepted % buffer.size();
    const std::uint64_t step = std::min({std::uint64_t{part.iov_len}, buffer.size() - used,
                                         std::uint64_t{buffer.size() - at}, script.cut_after_bytes - accepted});
    if (step == 0) break;
    std::memcpy(buffer.data() + at, part.iov_base, step);
    accepted += step;
    sending.advance(step);
    moved = true;
  }
  return moved;
}

/// Moves bytes from the buffer to the receiver, up to a stall.
bool PipeStream::Direction::deliver(IovecCursor& into) {
  bool moved = false;
  while (!into.done()) {
    const iovec part = into.window().front();
    const std::uint64_t until = std::min(accepted, script.stall_after_bytes);
    const std::size_t at = delivered % buffer.size();
    const std::uint64_t step =
        until <= delivered
            ? 0
            : std::min({std::uint64_t{part.iov_len}, until - delivered, std::uint64_t{buffer.size() - at}});
    if (step == 0) break;
    std::memcpy(part.iov_base, buffer.data() + at, step);
    delivered += step;
    into.advance(step);
    moved = true;
  }
  return moved;
}

/// Carries on with both directions' sends, and cuts where the script says so.
void PipeStream::Link::pump() {
  bool moved = false;
  for (std::size_t end = 0; end < 2; ++end) {
    if (cut || closed[end] || closed[1 - end]) continue;
    moved |= directions[end].accept();
  }
  if (!cut && (directions[0].at_cut() || directions[1].at_cut())) {
    cut = true;
    moved = true;
  }
  if (moved) changed.notify_all();
}

PipeStream::Pair PipeStream::make(PipeScript forward, PipeScript backward, std::size_t capacity_bytes) {
  FVMM_CHECK(capacity_bytes > 0, "a pipe without a buffer moves nothing");
  auto link = std::make_shared<Link>();
  link->directions[0].script = forward;
  link->directions[1].script = backward;
  for (Direction& direction : link->directions) direction.buffer.resize(capacity_bytes);
  return {std::unique_ptr<PipeStream>(new PipeStream(link, 0)), std::unique_ptr<PipeStream>(new PipeStream(link, 1))};
}

PipeStream::PipeStream(std::shared_ptr<Link> link, int end) : link_(std::move(link)), end_(end) {}

PipeStream::~PipeStream() {
  const std::lock_guard lock(link_->mutex);
  outgoing().sending.clear();
  link_->closed[end_] = true;
  link_->changed.notify_all();
}

PipeStream::Direction& PipeStream::outgoing() const {
  return link_->directions[end_];
}
PipeStream::Direction& PipeStream::incoming() const {
  return link_->directions[1 - end_];
}

/// Call with the mutex held.
Status PipeStream::usable() const {
  if (link_->cancelled[end_]) return Error(Errc::kCancelled, "pipe: cancelled");
  if (link_->broken_by[end_]) return Error(Errc::kUnavailable, "pipe: broken before by: " + *link_->broken_by[end_]);
  return {};
}

/// Call with the mutex held. As Channel: the first error closes the connection for the peer too.
Status PipeStream::broken(Error error) {
  if (!link_->broken_by[end_]) link_->broken_by[end_] = error.message();
  outgoing().sending.clear();
  link_->closed[end_] = true;
  link_->changed.notify_all();
  return error;
}

Status PipeStream::start_send(std::span<const iovec> parts, const Deadline& deadline) {
  FVMM_TRY(finish_send(deadline));
  const std::lock_guard lock(link_->mutex);
  outgoing().sending.assign(parts);
  link_->pump();
  return {};
}

Status PipeStream::finish_send(const Deadline& deadline) {
  std::unique_lock lock(link_->mutex);
  FVMM_TRY(usable());
  while (true) {
    link_->pump();
    const IovecCursor& sending = outgoing().sending;
    if (sending.done()) return {};
    if (link_->cut) return broken(Error(Errc::kUnavailable, "pipe: send: connection cut"));
    if (link_->closed[1 - end_]) return broken(Error(Errc::kUnavailable, "pipe: send: closed by peer"));
    if (deadline.passed()) {
      return broken(Error(Errc::kDeadlineExceeded,
                          "pipe: send: " + std::to_string(sending.left()) + " bytes left at the deadline"));
    }
    link_->changed.wait_until(lock, deadline.at());
    if (link_->cancelled[end_]) return broken(Error(Errc::kCancelled, "pipe: cancelled"));
  }
}

Status PipeStream::receive(std::span<const iovec> parts, const Deadline& deadline) {
  IovecCursor into;
  into.assign(parts);
  std::unique_lock lock(link_->mutex);
  FVMM_TRY(usable());
  while (!into.done()) {
    link_->pump();
    if (incoming().deliver(into)) {
      link_->changed.notify_all();  // there is room again
      continue;
    }
    // Bytes behind a stall are on their way: the end of the stream comes after them, as on a wire.
    const bool stalled = incoming().accepted > incoming().delivered;
    if (!stalled && (link_->cut || link_->closed[1 - end_])) {
      return broken(Error(Errc::kUnavailable, std::string("pipe: receive: closed by peer after ") +
                                                  std::to_string(into.moved()) + " of " + std::to_string(into.total()) +
                                                  " bytes"));
    }
    if (deadline.passed()) {
      return broken(Error(Errc::kDeadlineExceeded, "pipe: receive: " + std::to_string(into.moved()) + " of " +
                                                       std::to_string(into.total()) + " bytes at the deadline"));
    }
    link_->changed.wait_until(lock, deadline.at());
    if (link_->cancelled[end_]) return broken(Error(Errc::kCancelled, "pipe: cancelled"));
  }
  return {};
}

void PipeStream::cancel() {
  const std::lock_guard lock(link_->mutex);
  link_->cancelled[end_] = true;
  link_->closed[end_] = true;
  link_->changed.notify_all();
}

// As Channel: bytes that are still to be received do not hide the end behind them.
bool PipeStream::closed_by_peer() const {
  const std::lock_guard lock(link_->mutex);
  return link_->cut || link_->closed[1 - end_];
}

void PipeStream::cut() {
  const std::lock_guard lock(link_->mutex);
  link_->cut = true;
  link_->changed.notify_all();
}

void PipeStream::unstall() {
  const std::lock_guard lock(link_->mutex);
  outgoing().script.stall_after_bytes = PipeScript::kNever;
  link_->changed.notify_all();
}

std::uint64_t PipeStream::sent_bytes() const {
  const std::lock_guard lock(link_->mutex);
  return outgoing().accepted;
}

}  // namespace fvmm::net
