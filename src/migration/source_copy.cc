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

// Precopy: everything, then what the guest wrote meanwhile, round by round. Suspend: nothing here.
Status SourceSession::copy_rounds() {
  memory::DirtyTracker& dirty = guest_.machine->dirty();
  if (options_.mode == Mode::kSuspend) {
    FVMM_TRY(step("converged"));
    advance(SourceEvent::kConverged);
    return {};
  }
  FVMM_TRY(dirty.harvest());  // what came before is in the first round anyway
  round_ = dirty.add_reader();
  memory::Bitmap pages(guest_.machine->memory().layout().pages());
  pages.set_all();
  for (;;) {
    FVMM_TRY(step("round"));
    const std::uint64_t bytes_before = totals().bytes;
    const auto round_began = std::chrono::steady_clock::now();
    const Status sent = send_pages(pages);
    if (!sent) {
      round_->put_back(pages);
      return sent;
    }
    ++rounds_;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - round_began;
    rate_ = static_cast<double>(totals().bytes - bytes_before) / std::max(took.count(), 1e-6);
    FVMM_TRY(dirty.harvest());
    const Progress now{.rounds_done = rounds_,
                       .pages_left = round_->pending().count(),
                       .bytes_per_second = rate_,
                       .max_downtime = options_.max_downtime,
                       .deadline_near = deadline_.left() < std::chrono::nanoseconds(options_.timeout) / 4};
    progress("copying", now.pages_left);
    const Decision decision = decide(now);
    if (decision == Decision::kGiveUp) {
      return Error(
          Errc::kResourceExhausted,
          fmt::format("the guest dirties memory faster than the link carries it: {} pages left after round {} at "
                      "{:.0f} MB/s; raise --max-downtime or --timeout",
                      now.pages_left, rounds_, rate_ / 1e6));
    }
    if (decision == Decision::kPause) break;
    pages = round_->take();
  }
  phase_done("copy");
  FVMM_TRY(step("converged"));
  advance(SourceEvent::kConverged);
  return {};
}

Status SourceSession::stop_and_copy() {
  pause_begins_.emplace();
  FVMM_TRY(step("pause"));
  Machine& machine = *guest_.machine;
  paused_at_ = std::chrono::steady_clock::now();
  phase_began_ = paused_at_;
  we_paused_ = !machine.paused();
  FVMM_TRY(machine.pause());
  phase_done("pause");
  FVMM_TRY(step("save"));
  v1::PeerMessage message;
  message.set_kind(v1::PEER_STATE);
  *message.mutable_state() = FVMM_TRY(machine.save_state());  // may write guest memory: harvest after it
  phase_done("save");
  FVMM_TRY(step("harvest"));
  FVMM_TRY(machine.dirty().harvest());
  const memory::Bitmap& left = round_ ? round_->pending() : guest_.since_base->pending();
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
    return Error(Errc::kCancelled, "cancelled");
  }
  advance(SourceEvent::kPeerPrepared);
  v1::PeerMessage message;
  message.set_kind(v1::PEER_COMMIT);
  const Deadline wait = Deadline::after(options_.waits.answer);
  FVMM_TRY(step("committing"));
  FVMM_TRY(say(message, wait), "send COMMIT");
  FVMM_TRY(step("started"));
  FVMM_TRY(expect(v1::PEER_STARTED, wait), "waiting for STARTED");
  downtime_ms_ = to_ms(std::chrono::steady_clock::now() - paused_at_);
  advance(SourceEvent::kStarted);
  phase_done("commit");
  return {};
}

void SourceSession::progress(std::string_view phase, std::uint64_t pages_left) {
  if (!options_.on_event) return;
  v1::MigrateEvent event;
  const SendCounters sum = totals();
  event.set_phase(std::string(phase));
  event.set_round(rounds_);
  event.set_pages_sent(sum.pages);
  event.set_pages_left(pages_left);
  event.set_bytes_sent(sum.bytes);
  event.set_rate_mbytes_s(rate_ / 1e6);
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
    const Status recorded = write_record(v1::OUTCOME_STARTED);
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
    if (!status) result.set_error(status.error().message());
  }
  const SendCounters sum = totals();
  result.set_mode(options_.mode == Mode::kSuspend ? "suspend" : "precopy");
  result.set_why_mode(options_.why_mode);
  result.set_duration_ms(duration_ms_);
  result.set_downtime_ms(downtime_ms_);
  result.set_setup_ms(setup_ms_);
  result.set_rounds(rounds_);
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
