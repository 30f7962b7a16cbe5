#include "memory/tracking.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/check.h"
#include "base/clock.h"

namespace fvmm::memory {

std::string_view to_string(Tracking tracking) {
  return tracking == Tracking::kLog ? "log" : "scan";
}

Result<Tracking> parse_tracking(std::string_view text) {
  if (text.empty()) return Tracking::kLog;
  for (const Tracking one : {Tracking::kLog, Tracking::kScan}) {
    if (text == to_string(one)) return one;
  }
  return Error(Errc::kInvalidArgument, fmt::format("unknown tracking \"{}\"; there are log, scan", text));
}

Status TrackedLog::choose(Tracking tracking) {
  FVMM_CHECK(!private_, "tracking is chosen once");
  if (tracking == Tracking::kLog) return {};
  auto opened = FVMM_TRY(PrivatePages::open(), "tracking scan");
  FVMM_TRY(log_.disable(), "tracking scan");
  private_.emplace(std::move(opened));
  owed_ = true;
  return {};
}

Status TrackedLog::harvest(Bitmap& out) {
  return owed_ ? find_delta(out) : log_.harvest(out);
}

// A page written before the log was on is private by now, and so is one whose bit the CLEAR has dropped: the scan comes
// after both. What is written from the CLEAR on is in the log, whether the scan still sees it or not.
Status TrackedLog::find_delta(Bitmap& out) {
  const auto began = std::chrono::steady_clock::now();
  FVMM_TRY(log_.enable(), "turn the dirty log on");
  const auto enabled = std::chrono::steady_clock::now();
  Bitmap dropped(out.pages());
  FVMM_TRY(log_.harvest(dropped), "clear the dirty log");
  const auto cleared = std::chrono::steady_clock::now();
  Bitmap found(out.pages());
  FVMM_TRY(private_->find(memory_.pages({0, memory_.layout().pages()}), 0, found), "find the delta");
  const auto scanned = std::chrono::steady_clock::now();
  out.merge(found);
  owed_ = false;
  figures_ = ScanFigures{enabled - began, cleared - enabled, scanned - cleared, found.count()};
  spdlog::info("delta found: {} private pages; log on in {:.2f} ms, cleared in {:.2f} ms, scanned in {:.2f} ms",
               figures_->pages, to_ms(figures_->enable), to_ms(figures_->clear), to_ms(figures_->scan));
  return {};
}

}  // namespace fvmm::memory
