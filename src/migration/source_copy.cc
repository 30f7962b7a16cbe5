// SourceSession's middle: rounds, the pause, COMMIT, and the figures.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <future>

#include "migration/convergence.h"
#include "migration/source.h"
#include "net/frame.h"

namespace fvmm::migration {
namespace {

constexpr std::uint64_t kInlinePagesMax = 4096;  // below that, threads cost more than they gain

// Which pages go on which connection; order within a connection is ascending.
std::vector<std::vector<memory::PageRange>> shard(const memory::Bitmap& pages, std::size_t connections) {
  std::vector<std::vector<memory::PageRange>> shards(connections);
  if (connections == 1) {
    shards[0] = pages.ranges(pages.pages());
    return shards;
  }
  for (memory::PageRange range : pages.ranges(pages.pages())) {
    while (range.count != 0) {
      const std::uint64_t part = std::min(range.count, kShardPages - range.first % kShardPages);
      shards[range.first / kShardPages % connections].push_back({range.first, part});
      range = {range.first + part, range.count - part};
    }
  }
  return shards;
}

}  // namespace

SendCounters SourceSession::totals() const {
  SendCounters sum;
  for (const auto& sender : senders_) {
    sum.frames += sender->counters().frames;
    sum.pages += sender->counters().pages;
    sum.zero_pages += sender->counters().zero_pages;
    sum.bytes += sender->counters().bytes;
  }
  return sum;
}

Status SourceSession::send_pages(const memory::Bitmap& pages) {
  const auto shards = shard(pages, senders_.size());
  const bool threads = senders_.size() > 1 && pages.count() > kInlinePagesMax;
  std::vector<std::future<Status>> others;
  for (std::size_t i = 1; i < senders_.size() && threads; ++i) {
    others.push_back(
        std::async(std::launch::async, [this, i, &shards] { return senders_[i]->send(shards[i], deadline_); }));
  }
  Status status = senders_[0]->send(shards[0], deadline_);
  for (auto& other : others) {
    Status one = other.get();
    if (status) status = std::move(one);
  }
  for (std::size_t i = 1; i < senders_.size() && !threads && status; ++i)
    status = senders_[i]->send(shards[i], deadline_);
  return status;
}

// Live: what differs from the template. Precopy: everything. Pages that the guest writes from here on come in `round_`.
memory::Bitmap SourceSession::first_round() {
  round_ = guest_.machine->dirty().add_reader();
  if (options_.mode == Mode::kLive) return delta();
  memory::Bitmap all(guest_.machine->memory().layout().pages());
  all.set_all();
  return all;
}

// What is still in socket buffers, or being written at the peer, would be waited for in the pause; and a rate that
// does not count the peer's share of the work would promise too much. One round trip a round.
Status SourceSession::sync() {
  for (auto& sender : senders_) FVMM_TRY(sender->ask_sync(deadline_));
  for (auto& sender : senders_) FVMM_TRY(sender->synced(deadline_));
  return {};
}

Status SourceSession::send_round(memory::Bitmap& pages) {
  const std::uint64_t bytes_before = totals().bytes;
  const auto began = std::chrono::steady_clock::now();
  Status sent = send_pages(pages);
  if (sent) sent = pacer_.settle(deadline_);
  if (sent) sent = sync();
  if (!sent) {
    round_->put_back(pages);
    return sent;
  }
  ++rounds_;
  FVMM_TRY(guest_.machine->dirty().harvest());
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  const double seconds = std::max(took.count(), 1e-6);
  rate_ = static_cast<double>(totals().bytes - bytes_before) / seconds;
  dirty_rate_ = static_cast<double>(round_->pending().count() * kPageBytes) / seconds;
  return {};
}

Progress SourceSession::assess(const memory::Bitmap& sent) {
  Progress now{.rounds_done = rounds_ - rounds_before_step_,
               .pages_left = round_->pending().count(),
               .bytes_per_second = rate_,
               .max_downtime = options_.max_downtime,
               .deadline_near = deadline_.left() < std::chrono::nanoseconds(options_.timeout) / 4,
               .pages_before = sent.count(),
               .stalled_rounds = 0,
               .may_throttle = options_.allow_throttle,
               .throttle_percent = throttle_};
  stalled_rounds_ = stalled(now) ? stalled_rounds_ + 1 : 0;
  now.stalled_rounds = stalled_rounds_;
  return now;
}

Status SourceSession::hold_back() {
  throttle_ = next_throttle(throttle_);
  stalled_rounds_ = 0;
  rounds_before_step_ = rounds_;
  FVMM_TRY(step("throttle"));
  guest_.machine->throttle(throttle_);
  spdlog::info("migration of {}: held back by {} % of its time", guest_.config.name(), throttle_);
  return {};
}

Error SourceSession::too_fast(const Progress& now) const {
  return {Errc::kResourceExhausted,
          fmt::format("the guest dirties memory faster than the link carries it: {:.0f} MB/s against {:.0f} MB/s, {} "
                      "pages left after round {}{}; raise --max-downtime{} or --timeout{}",
                      dirty_rate_ / 1e6, rate_ / 1e6, now.pages_left, rounds_,
                      throttle_ == 0 ? "" : fmt::format(", although held back by {} %", throttle_),
                      options_.bandwidth_bytes_s == 0 ? "" : ", --bandwidth",
                      options_.allow_throttle ? "" : ", or let the guest be slowed with --allow-throttle")};
}

// Live and precopy: round by round what the guest wrote during the one before. Suspend: nothing here.
Status SourceSession::copy_rounds() {
  if (options_.mode == Mode::kSuspend) {
    FVMM_TRY(step("converged"));
    advance(SourceEvent::kConverged);
    return {};
  }
  FVMM_TRY(guest_.machine->dirty().harvest());  // what came before is in the first round anyway
  memory::Bitmap pages = first_round();
  for (;;) {
    FVMM_TRY(step("round"));
    FVMM_TRY(send_round(pages));
    const Progress now = assess(pages);
    progress("copying", now);
    const Decision decision = decide(now);
    if (decision == Decision::kGiveUp) return too_fast(now);
    if (decision == Decision::kPause) break;
    if (decision == Decision::kThrottle) FVMM_TRY(hold_back());
    pages = round_->take();
  }
  phase_done("copy");
  FVMM_TRY(step("converged"));
  advance(SourceEvent::kConverged);
  return {};
}

Status SourceSession::stop_and_copy() {
  const bool disks = guest_.config.disks_size() != 0;
  if (disks) {
    FVMM_TRY(guest_.machine->flush_disks());
    phase_done("disks");
  }
  pause_begins_.emplace();
  FVMM_TRY(step("pause"));
  Machine& machine = *guest_.machine;
  paused_at_ = std::chrono::steady_clock::now();
  phase_began_ = paused_at_;
  we_paused_ = !machine.paused();
  FVMM_TRY(machine.pause());
  phase_done("pause");
  if (disks) {
    FVMM_TRY(machine.flush_disks());
    phase_done("flush");
  }
  FVMM_TRY(step("save"));
  v1::PeerMessage message;
  message.set_kind(v1::PEER_STATE);
  *message.mutable_state() = FVMM_TRY(machine.save_state());  // may write guest memory: harvest after it
  phase_done("save");
  FVMM_TRY(step("harvest"));
  FVMM_TRY(machine.dirty().harvest());
  const memory::Bitmap& left = round_ ? round_->pending() : delta();
  phase_done("harvest");
  FVMM_TRY(step("pages"));
  FVMM_TRY(send_pages(left));
  for (auto& sender : senders_) FVMM_TRY(sender->send_end(deadline_));
  phase_done("pages");
  FVMM_TRY(step("state"));
  message.set_paused(!we_paused_);
  for (auto& sender : senders_) message.add_frames_sent(sender->counters().frames);
  *message.mutable_state()->mutable_config() = guest_.config;
  const Deadline wait = deadline_.sooner(options_.waits.answer);
  FVMM_TRY(say(message, wait), "send STATE");
  final_state_ = std::move(*message.mutable_state());
  phase_done("state");
  FVMM_TRY(step("prepared"));
  FVMM_TRY(expect(v1::PEER_PREPARED, wait), "waiting for PREPARED");
  phase_done("prepare");
  return {};
}

Status SourceSession::commit() {
  FVMM_TRY(step("commit"));
  committing_ = true;
  if (cancelled_) {  // won the race against us: nothing has been said yet
    committing_ = false;
    FVMM_TRY(guest_.machine->fenced());
    return Error(Errc::kCancelled, "cancelled");
  }
  if (Status may = guest_.machine->fenced(); !may) {  // the right to run is not ours to hand over
    committing_ = false;
    return may;
  }
  guest_.machine->let_go_of_disks();  // before COMMIT: with it the peer takes them
  advance(SourceEvent::kPeerPrepared);
  v1::PeerMessage message;
  message.set_kind(v1::PEER_COMMIT);
  const Deadline wait = Deadline::after(options_.waits.answer);
  FVMM_TRY(step("committing"));
  FVMM_TRY(say(message, wait), "send COMMIT");
  FVMM_TRY(step("started"));
  peer_agrees_ = FVMM_TRY(expect(v1::PEER_STARTED, wait), "waiting for STARTED").agrees_way_back();
  downtime_ms_ = to_ms(std::chrono::steady_clock::now() - paused_at_);
  advance(SourceEvent::kStarted);
  phase_done("commit");
  return {};
}

void SourceSession::progress(std::string_view phase, const Progress& now) {
  if (!options_.on_event) return;
  v1::MigrateEvent event;
  const SendCounters sum = totals();
  event.set_phase(std::string(phase));
  event.set_round(rounds_);
  event.set_pages_sent(sum.pages);
  event.set_pages_left(now.pages_left);
  event.set_bytes_sent(sum.bytes);
  event.set_rate_mbytes_s(rate_ / 1e6);
  event.set_dirty_mbytes_s(dirty_rate_ / 1e6);
  event.set_expected_downtime_ms(
      to_ms(std::min<std::chrono::microseconds>(expected_downtime(now), std::chrono::hours(1))));
  event.set_throttle_percent(throttle_);
  options_.on_event(event);
}

void SourceSession::phase_done(std::string_view name) {
  const auto now = std::chrono::steady_clock::now();
  v1::Phase phase;
  phase.set_name(std::string(name));
  phase.set_ms(to_ms(now - phase_began_));
  phases_.push_back(std::move(phase));
  phase_began_ = now;
}

// Settles the session: the source durably loses the right to run, then says so; only then is the migration over.
v1::MigrateResult SourceSession::report(const Status& status) {
  v1::MigrateResult result;
  if (state_ == SourceState::kDone) {
    const Status recorded =
        write_last_record([this] { return write_record(v1::OUTCOME_STARTED); }, options_.waits.record);
    if (!recorded) spdlog::error("record of the finished session: {}", recorded.error().message());
    phase_done("settle");
    duration_ms_ = to_ms(std::chrono::steady_clock::now() - began_);
    v1::PeerMessage settled;
    settled.set_kind(v1::PEER_SETTLED);
    (void)say(settled, Deadline::after(std::chrono::milliseconds(500)));  // the peer goes on without it, too
    result.set_result("completed");
  } else {
    duration_ms_ = to_ms(std::chrono::steady_clock::now() - began_);
    result.set_result(state_ == SourceState::kUnknown ? "unknown" : "aborted");
    if (!status) {
      result.set_error(status.error().message());
      result.set_code(static_cast<std::uint32_t>(status.error().code()));
    }
  }
  const SendCounters sum = totals();
  result.set_mode(std::string(to_string(options_.mode)));
  result.set_why_mode(options_.why_mode);
  result.set_duration_ms(duration_ms_);
  result.set_downtime_ms(downtime_ms_);
  result.set_setup_ms(setup_ms_);
  result.set_rounds(rounds_);
  result.set_throttle_percent(throttle_);
  result.set_pages_sent(sum.pages);
  result.set_bytes_sent(sum.bytes);
  if (options_.mode != Mode::kPrecopy) {
    result.set_template_(guest_.base.name());
    result.set_generation(guest_.base.generation());
  }
  for (auto& phase : phases_) *result.add_phases() = std::move(phase);
  return result;
}

}  // namespace fvmm::migration
