// How a VM's delta is known: from a log that runs from the first instruction on, or by looking for it when it is
// needed.
#pragma once

#include <chrono>
#include <optional>
#include <string_view>

#include "base/result.h"
#include "memory/dirty.h"
#include "memory/guest_memory.h"
#include "memory/private_pages.h"

namespace fvmm::memory {

/// kLog: every first write to a page is logged, always. kScan: nothing is logged until the delta is needed; then the
/// log goes on and the private pages are found by PrivatePages. docs/techniques.md compares them.
enum class Tracking { kLog, kScan };
inline constexpr Tracking kDefaultTracking = Tracking::kLog;
std::string_view to_string(Tracking tracking);
/// "log", "scan"; empty: log, which is all that there was when configurations did not say. kInvalidArgument names the
/// text and what there is.
Result<Tracking> parse_tracking(std::string_view text);

/// A log that can be off. Owner: the thread that owns the VM.
class SwitchedLog : public DirtySource {
 public:
  /// Everything written after this returns is in a later harvest. What harvest() first gives may name any page.
  virtual Status enable() = 0;
  virtual Status disable() = 0;
};

/// What turning the log on cost.
struct ScanFigures {
  std::chrono::nanoseconds enable{};  // the log
  std::chrono::nanoseconds clear{};   // all of it
  std::chrono::nanoseconds scan{};
  std::uint64_t pages = 0;  // found
};

/// The DirtySource of a VM under either kind of tracking. Under kScan the first harvest brings the delta itself: no
/// caller can read a delta from a log that was off. That harvest walks the page tables, so it belongs outside any
/// pause: ready() tells. Owner: the thread that owns the VM.
class TrackedLog final : public DirtySource {
 public:
  /// `log` is on; both must outlive this.
  TrackedLog(SwitchedLog& log, const GuestMemory& memory) : log_(log), memory_(memory) {}

  /// kScan turns the log off. Once, before anything is mapped: what was logged until here counts for nothing. Errors:
  /// those of PrivatePages::open() and of the log; then this VM is not to be run.
  Status choose(Tracking tracking);
  [[nodiscard]] bool ready() const override { return !owed_; }
  /// Once the log is on it stays on. On an error of the scan the next harvest scans again, and nothing is lost.
  Status harvest(Bitmap& out) override;
  [[nodiscard]] Tracking tracking() const { return private_ ? Tracking::kScan : Tracking::kLog; }
  /// Of the scan; nothing before it.
  [[nodiscard]] const std::optional<ScanFigures>& figures() const { return figures_; }

 private:
  Status find_delta(Bitmap& out);

  SwitchedLog& log_;
  const GuestMemory& memory_;
  std::optional<PrivatePages> private_;  // kScan
  bool owed_ = false;                    // the delta is not in the log
  std::optional<ScanFigures> figures_;
};

}  // namespace fvmm::memory
