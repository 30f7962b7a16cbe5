#include "migration/cow.h"

#include "base/clock.h"
#include "base/pause_guard.h"
#include "base/realtime.h"

namespace fvmm::migration {
namespace {

class Cow {
 public:
  Cow(Machine& machine, memory::DirtyTracker::Reader& since, PageSink& sink, memory::InstantCopy& copy,
      const std::function<bool()>& stop)
      : machine_(machine),
        since_(since),
        sink_(sink),
        copy_(copy),
        stop_(stop),
        taken_(machine.memory().layout().pages()),
        out_(machine.memory().layout().pages()) {}

  Result<Capture> run() {
    Status status = capture();
    out_.faults = copy_.faults();
    copy_.end();
    if (status) return std::move(out_);
    since_.put_back(out_.pages);
    return std::move(status.error());
  }

 private:
  Status capture() {
    FVMM_TRY(copy_.begin());
    FVMM_TRY(rounds());
    FVMM_TRY(freeze());
    const auto put = [&](memory::PageRange range, const std::byte* bytes) { return sink_.put(range, bytes); };
    for (bool more = true; more;) {
      if (stop_ && stop_()) return Error(Errc::kCancelled, "cancelled");
      FVMM_TRY(machine_.fenced());
      more = FVMM_TRY(copy_.next(put));
    }
    return {};
  }

  // Arms as long as that leaves less to arm in the pause. A page that the guest writes meanwhile is left for it.
  Status rounds() {
    for (std::uint64_t before = ~0ULL; out_.rounds < kCowRoundsMax; ++out_.rounds) {
      const std::uint64_t left = FVMM_TRY(collect());
      if (left <= kCowPausePages || left > before - before / 4) return {};
      before = left;
      FVMM_TRY(copy_.arm(out_.pages, stop_));
    }
    return {};
  }

  Result<std::uint64_t> collect() {
    FVMM_TRY(machine_.dirty().harvest());
    since_.take_into(taken_);
    out_.pages.merge(taken_);
    return copy_.unarmed(out_.pages);
  }

  Status freeze() {
    const ScopedFifo soon;
    const auto began = std::chrono::steady_clock::now();
    FVMM_TRY(frozen());
    out_.pause = std::chrono::steady_clock::now() - began;
    return {};
  }

  Status frozen() {
    const auto paused = FVMM_TRY(PauseGuard<Machine>::take(machine_));
    out_.state = FVMM_TRY(machine_.save_state());  // may write guest memory: harvest after it, freeze after that
    out_.pause_pages = FVMM_TRY(collect());
    copy_.freeze();
    out_.realtime_ns = static_cast<std::uint64_t>(system_clock().realtime_ns());
    FVMM_TRY(copy_.arm(out_.pages));
    return machine_.cut_disks();
  }

  Machine& machine_;
  memory::DirtyTracker::Reader& since_;
  PageSink& sink_;
  memory::InstantCopy& copy_;
  const std::function<bool()>& stop_;
  memory::Bitmap taken_;
  Capture out_;
};

}  // namespace

Result<Capture> cow(Machine& machine, memory::DirtyTracker::Reader& since, PageSink& sink, memory::InstantCopy& copy,
                    const std::function<bool()>& stop) {
  return Cow(machine, since, sink, copy, stop).run();
}

}  // namespace fvmm::migration
