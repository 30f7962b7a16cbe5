#include "migration/capture.h"

#include <fmt/format.h>

#include "base/clock.h"
#include "base/pause_guard.h"
#include "base/realtime.h"

namespace fvmm::migration {
namespace {

class Chase {
 public:
  Chase(Machine& machine, memory::DirtyTracker::Reader& since, PageSink& sink, const std::function<bool()>& stop)
      : machine_(machine), since_(since), sink_(sink), stop_(stop), out_(machine.memory().layout().pages()) {}

  Result<Capture> run() {
    Status status = follow();
    if (status) return std::move(out_);
    since_.put_back(out_.pages);
    return std::move(status.error());
  }

 private:
  Status follow() {
    for (std::uint32_t pauses = 0; pauses < kChasePausesMax; ++pauses) {
      FVMM_TRY(rounds());
      const std::uint64_t room = 2 * since_.pending().count() + kReserveSlackPages;
      FVMM_TRY(sink_.reserve(room));
      if (FVMM_TRY(freeze(room))) return {};
    }
    return Error(Errc::kResourceExhausted,
                 "the guest dirties memory faster than it can be copied: a generation would not fit into a pause");
  }

  // Copies as long as that leaves less to copy.
  Status rounds() {
    FVMM_TRY(machine_.dirty().harvest());
    for (std::uint64_t before = ~0ULL; out_.rounds < kChaseRoundsMax; ++out_.rounds) {
      const std::uint64_t left = since_.pending().count();
      if (left <= kChasePausePages || left > before - before / 4) return {};
      before = left;
      FVMM_TRY(copy());
      FVMM_TRY(machine_.dirty().harvest());
    }
    return {};
  }

  Result<bool> freeze(std::uint64_t room) {
    const ScopedFifo soon;
    const auto began = std::chrono::steady_clock::now();
    const bool done = FVMM_TRY(frozen(room));
    out_.pause = std::chrono::steady_clock::now() - began;
    return done;
  }

  // False: there was more than `room`, and the guest runs on.
  Result<bool> frozen(std::uint64_t room) {
    const auto paused = FVMM_TRY(PauseGuard<Machine>::take(machine_));
    out_.state = FVMM_TRY(machine_.save_state());  // may write guest memory: harvest after it
    FVMM_TRY(machine_.dirty().harvest());
    out_.pause_pages = since_.pending().count();
    if (out_.pause_pages > room) return false;
    FVMM_TRY(copy());
    FVMM_TRY(machine_.cut_disks());  // last: from here on nothing is done over
    out_.realtime_ns = static_cast<std::uint64_t>(system_clock().realtime_ns());
    return true;
  }

  // Cleared first, read after: what is written meanwhile is pending again.
  Status copy() {
    const memory::Bitmap round = since_.take();
    out_.pages.merge(round);
    for (const memory::PageRange& range : round.ranges(kChaseRunPages)) {
      if (stop_ && stop_()) return Error(Errc::kCancelled, "cancelled");
      FVMM_TRY(machine_.fenced());
      FVMM_TRY(sink_.put(range, machine_.memory().pages(range).data()));
    }
    return {};
  }

  Machine& machine_;
  memory::DirtyTracker::Reader& since_;
  PageSink& sink_;
  const std::function<bool()>& stop_;
  Capture out_;
};

}  // namespace

Result<Capture> chase(Machine& machine, memory::DirtyTracker::Reader& since, PageSink& sink,
                      const std::function<bool()>& stop) {
  return Chase(machine, since, sink, stop).run();
}

}  // namespace fvmm::migration
