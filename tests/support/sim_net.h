// The simulated network: connections with delay, cuts at a byte, stalls, late and repeated messages, hosts that fall
// silent. Everything runs on simulated threads (support/sim_scheduler.h), one at a time: nothing here needs a lock.
#pragma once

#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "net/iovec_cursor.h"
#include "net/stream.h"
#include "support/sim_scheduler.h"

namespace fvmm::testing {

/// What befalls one direction of one connection. Bytes and messages are counted from its start.
struct SimScript {
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t cut_at = kNever;       // exactly so many bytes pass, then the connection is gone, both ways
  std::uint64_t cut_message = kNever;  // the same: so many bytes into this message (what one send hands over)
  std::uint64_t cut_message_at = 0;
  std::uint64_t stall_at = kNever;      // the byte with this number and all after it come later,
  SimTime stall_for = 0;                // by this much
  std::uint64_t late_message = kNever;  // the same for a message and all after it,
  SimTime late_for = 0;
  std::uint64_t repeated_message = kNever;  // this message comes a second time,
  SimTime repeated_after = 0;               // so much later
  SimTime latency = 50'000;
  std::uint64_t step_max = 64 * 1024;  // bytes that leave in one piece
};

/// A connection. What was handed over is delivered in order and in time, also after its sender has closed.
struct SimLink {
  struct Piece {
    std::vector<std::byte> bytes;
    SimTime at;
    std::size_t taken = 0;
  };
  struct Direction {
    SimScript script;
    std::deque<Piece> pieces;
    std::uint64_t accepted = 0;
    std::uint64_t messages = 0;
    std::uint64_t buffered = 0;
    SimTime last_at = 0;
    SimTime held_until = 0;  // by a stall that has begun
  };
  static constexpr std::uint64_t kCapacityBytes = 96 * 1024;
  std::array<Direction, 2> directions;  // [e]: what end e sends
  std::array<int, 2> hosts{};
  std::array<bool, 2> closed{};     // end e is gone, or gave up
  std::array<bool, 2> silent{};     // end e's host lost power: its closing is not seen
  std::array<bool, 2> cancelled{};  // end e, by another thread
  bool cut = false;

  /// Whether end e learns that nothing more comes.
  [[nodiscard]] bool over(int e) const { return cut || (closed[1 - e] && !silent[1 - e]); }
  void changed() { SimScheduler::current->notify(this, true); }
};
using SimLinks = std::vector<std::weak_ptr<SimLink>>;

/// One end. `alive` is called at every call: it lets others run, and throws when this end's process is dead.
class SimStream final : public net::Stream {
 public:
  SimStream(std::shared_ptr<SimLink> link, int end, std::function<void()> alive)
      : link_(std::move(link)), end_(end), alive_(std::move(alive)) {
    ++living;
  }
  ~SimStream() override {
    link_->closed[end_] = true;
    if (SimScheduler::current != nullptr) link_->changed();
    --living;
  }
  SimStream(const SimStream&) = delete;
  SimStream& operator=(const SimStream&) = delete;
  SimStream(SimStream&&) = delete;
  SimStream& operator=(SimStream&&) = delete;

  Status start_send(std::span<const iovec> parts, const Deadline& deadline) override {
    FVMM_TRY(finish_send(deadline));
    sending_.assign(parts);
    message_.clear();
    auto& out = link_->directions[end_];
    if (out.messages == out.script.cut_message) out.script.cut_at = out.accepted + out.script.cut_message_at;
    if (out.messages == out.script.late_message) out.held_until = now() + out.script.late_for;
    if (out.messages++ == out.script.repeated_message) copy_message(parts);
    if (usable() && !link_->over(end_)) accept();  // as a socket: what fits is gone at once
    return {};
  }

  Status finish_send(const Deadline& deadline) override {
    for (;;) {
      alive_();
      FVMM_TRY(usable());
      if (sending_.done()) break;
      if (link_->over(end_)) return broken(Error(Errc::kUnavailable, "sim: send: closed by peer"));
      if (accept()) continue;
      if (deadline.passed()) return broken(Error(Errc::kDeadlineExceeded, "sim: send"));
      wait(deadline, kSimNever);
    }
    if (!message_.empty() && !link_->cut) repeat();
    return {};
  }

  Status receive(std::span<const iovec> parts, const Deadline& deadline) override {
    net::IovecCursor into;
    into.assign(parts);
    for (;;) {
      alive_();
      FVMM_TRY(usable());
      while (take(into)) link_->changed();  // there is room again
      if (into.done()) return {};
      const auto& in = link_->directions[1 - end_];
      if (in.pieces.empty() && link_->over(end_)) return broken(Error(Errc::kUnavailable, "sim: closed by peer"));
      if (deadline.passed()) return broken(Error(Errc::kDeadlineExceeded, "sim: receive"));
      wait(deadline, in.pieces.empty() ? kSimNever : in.pieces.front().at);
    }
  }
  using Stream::receive;

  [[nodiscard]] bool closed_by_peer() const override {
    const auto& in = link_->directions[1 - end_];
    return link_->over(end_) && now() >= in.last_at;
  }
  void cancel() override {
    link_->cancelled[end_] = true;
    link_->closed[end_] = true;
    link_->changed();
  }

  static inline int living = 0;

 private:
  static SimTime now() { return SimScheduler::current->now(); }
  [[nodiscard]] Status usable() const {
    if (link_->cancelled[end_]) return Error(Errc::kCancelled, "sim: cancelled");
    if (broken_) return Error(Errc::kUnavailable, "sim: broken before");
    return {};
  }
  Status broken(Error error) {
    broken_ = true;
    sending_.clear();
    link_->closed[end_] = true;
    link_->changed();
    return error;
  }
  void wait(const Deadline& deadline, SimTime until) {
    const SimTime limit = std::chrono::nanoseconds(deadline.at().time_since_epoch()).count();
    SimScheduler::current->block(link_.get(), std::min(limit, until));
  }
  void copy_message(std::span<const iovec> parts) {
    for (const iovec& part : parts) {
      const auto* const bytes = static_cast<const std::byte*>(part.iov_base);
      message_.insert(message_.end(), bytes, bytes + part.iov_len);
    }
  }
  /// Takes one piece from the sender, as its memory is at this moment. False: there is no room, or nothing left.
  bool accept() {
    auto& out = link_->directions[end_];
    std::uint64_t left = std::min(out.script.step_max, SimLink::kCapacityBytes - out.buffered);
    left = std::min(left, out.script.cut_at - out.accepted);
    if (out.accepted < out.script.stall_at) left = std::min(left, out.script.stall_at - out.accepted);
    if (out.accepted == out.script.stall_at) out.held_until = now() + out.script.stall_for;
    SimLink::Piece piece;
    while (left > 0 && !sending_.done()) {
      const iovec part = sending_.window().front();
      const std::uint64_t step = std::min<std::uint64_t>(left, part.iov_len);
      const auto* const bytes = static_cast<const std::byte*>(part.iov_base);
      piece.bytes.insert(piece.bytes.end(), bytes, bytes + step);
      sending_.advance(step);
      left -= step;
    }
    const bool moved = !piece.bytes.empty();
    if (moved) {
      out.accepted += piece.bytes.size();
      out.buffered += piece.bytes.size();
      out.last_at = std::max({out.last_at, now() + out.script.latency, out.held_until});
      piece.at = out.last_at;
      out.pieces.push_back(std::move(piece));
    }
    if (out.accepted >= out.script.cut_at) link_->cut = true;
    if (moved || link_->cut) link_->changed();
    return moved;
  }
  /// The message once more, between two others: somebody on the way has sent it again.
  void repeat() {
    auto& out = link_->directions[end_];
    const SimTime at = std::max(now() + out.script.latency, out.held_until) + out.script.repeated_after;
    auto place = out.pieces.end();
    while (place != out.pieces.begin() && std::prev(place)->at > at && std::prev(place)->taken == 0) --place;
    out.buffered += message_.size();
    out.pieces.insert(place, {std::move(message_), at, 0});
    message_.clear();
    link_->changed();
  }
  bool take(net::IovecCursor& into) {
    auto& in = link_->directions[1 - end_];
    if (into.done() || in.pieces.empty() || in.pieces.front().at > now()) return false;
    SimLink::Piece& piece = in.pieces.front();
    const iovec part = into.window().front();
    const std::size_t step = std::min(part.iov_len, piece.bytes.size() - piece.taken);
    std::memcpy(part.iov_base, piece.bytes.data() + piece.taken, step);
    piece.taken += step;
    in.buffered -= step;
    into.advance(step);
    if (piece.taken == piece.bytes.size()) in.pieces.pop_front();
    return true;
  }

  std::shared_ptr<SimLink> link_;
  const int end_;
  std::function<void()> alive_;
  net::IovecCursor sending_;
  std::vector<std::byte> message_;  // to be repeated
  bool broken_ = false;
};

}  // namespace fvmm::testing
