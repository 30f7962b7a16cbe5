// Replication's capture thread: waits until a generation is due, takes it, and keeps what must go again.
#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include <algorithm>

#include "migration/replication.h"

namespace fvmm::migration {

ReplicationPace Replication::pace() const {
  return {.since_instant = std::chrono::steady_clock::now() - last_instant_,
          .round_trip = round_trip_,
          .in_flight = in_flight_.size(),
          .dirty_pages = dirty_pages_};
}

void Replication::capture_loop() {
  ::pthread_setname_np(::pthread_self(), "capture");
  while (wait_until_due()) {
    const Status taken = with_guest_([this](Guest& guest) { return capture(guest); });
    const std::lock_guard lock(mutex_);
    if (taken || stopping_) continue;
    // Not a broken link, which the sender reports: the guest is busy elsewhere, or too fast. Tried again when due.
    if (connected_) status_.set_detail(taken.error().message());
    last_instant_ = std::chrono::steady_clock::now();
  }
}

// Harvests now and then where dirt decides; otherwise sleeps until the time has come. False: stopping.
bool Replication::wait_until_due() {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (stopping_) return false;
    const ReplicationPace now = pace();
    if (connected_ && generation_is_due(options_.policy, now)) return true;
    const auto interval = interval_in_force(options_.policy, now);
    status_.set_interval_ms(static_cast<std::uint32_t>(std::chrono::ceil<std::chrono::milliseconds>(interval).count()));
    const bool looks = connected_ && options_.policy.dirty_pages_max != 0;
    auto wait = interval > now.since_instant ? interval - now.since_instant : interval;
    if (looks)
      wait = std::min<std::chrono::nanoseconds>(wait, std::max<std::chrono::nanoseconds>(interval / 8, kPolicyLook));
    const auto seen = in_flight_.size();
    const bool connected = connected_;
    changed_.wait_for(lock, wait, [&] { return stopping_ || connected_ != connected || in_flight_.size() < seen; });
    if (!looks || stopping_) continue;
    lock.unlock();
    (void)with_guest_([this](Guest& guest) { return look(guest); });  // a busy guest is looked at the next time
    lock.lock();
  }
}

Status Replication::look(Guest& guest) {
  if (!guest.since_generation) return {};
  FVMM_TRY(guest.machine->dirty().harvest());
  const std::lock_guard lock(mutex_);
  dirty_pages_ = guest.since_generation->pending().count();
  return {};
}

// Generations that were captured and never sealed: what they held goes again. "A failed send puts its bits back."
Status Replication::give_back(Guest& guest) {
  const std::lock_guard lock(mutex_);
  if (start_over_ && guest.base.digest() != base_.digest()) {
    return Error(
        Errc::kFailedPrecondition,
        fmt::format("VM {} has got a new template meanwhile, and the peer needs everything: stop the replication "
                    "and start it again",
                    config_.name()));
  }
  if (lost_) guest.since_generation->put_back(*lost_);
  lost_.reset();
  if (start_over_) guest.since_generation->put_back(guest.since_base->pending());
  start_over_ = false;
  return {};
}

Status Replication::capture(Guest& guest) {
  if (!guest.since_generation) return Error(Errc::kCancelled, "the replication has ended");
  FVMM_TRY(step("capture"));
  const auto stop = [this] {
    if (options_.wanted && options_.wanted()) return true;
    const std::lock_guard lock(mutex_);
    return stopping_;
  };
  FVMM_TRY(buffer_->begin(stop));
  FVMM_TRY(guest.machine->dirty().harvest());
  FVMM_TRY(give_back(guest));
  std::uint64_t number = 0;
  {
    const std::lock_guard lock(mutex_);
    number = next_number_;
  }
  Capture taken = FVMM_TRY(chase(*guest.machine, *guest.since_generation, *buffer_, stop));
  const SteadyTime instant = std::chrono::steady_clock::now();
  taken.state.set_fencing_token(guest.fencing_token);
  *taken.state.mutable_config() = guest.config;
  {
    const std::lock_guard lock(mutex_);
    in_flight_.push_back({number, {}, taken.pages, instant});  // before its end can be sent
    ++next_number_;
    last_instant_ = instant;
    dirty_pages_ = 0;
    status_.set_generation_captured(number);
    status_.set_pause_ms(to_ms(taken.pause));
    status_.set_pause_ms_max(std::max(status_.pause_ms_max(), to_ms(taken.pause)));
    status_.set_detail("");
  }
  Status ended = buffer_->finish({number, taken.realtime_ns, std::move(taken.state)});
  if (ended) return step("captured");
  const std::lock_guard lock(mutex_);
  // The link went down in between: if the sender has not found this point in flight, it is still there.
  if (!in_flight_.empty() && in_flight_.back().number == number) {
    if (!lost_) lost_.emplace(taken.pages.pages());
    lost_->merge(in_flight_.back().pages);
    in_flight_.pop_back();
  }
  return ended;
}

}  // namespace fvmm::migration
