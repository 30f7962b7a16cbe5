// Capturing a generation of a running VM: engine `chase`. DESIGN: templating a running VM.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

#include "base/result.h"
#include "memory/dirty.h"
#include "migration/machine.h"

namespace fvmm::migration {

inline constexpr std::uint32_t kChaseRoundsMax = 12;      // copies while the guest runs; then it is paused all the same
inline constexpr std::uint32_t kChasePausesMax = 3;       // pauses that found more than there was room for
inline constexpr std::uint64_t kChasePausePages = 256;    // so few are left: copying them takes 0.1 ms
inline constexpr std::uint64_t kChaseRunPages = 256;      // copied at a time
inline constexpr std::uint64_t kReserveSlackPages = 512;  // written between the last look and the pause

/// Where captured pages go, in the order of capture; a page may come again, and the later copy counts.
class PageSink {
 public:
  PageSink() = default;
  virtual ~PageSink() = default;
  PageSink(const PageSink&) = delete;
  PageSink& operator=(const PageSink&) = delete;
  PageSink(PageSink&&) = delete;
  PageSink& operator=(PageSink&&) = delete;
  /// Copies the pages, which the guest may be writing meanwhile. May wait for room, except for what was reserved.
  virtual Status put(memory::PageRange range, const std::byte* bytes) = 0;
  /// Waits until the next `pages` can be taken without a wait. kResourceExhausted when they never can.
  virtual Status reserve(std::uint64_t pages) = 0;
};

struct Capture {
  explicit Capture(std::uint64_t guest_pages) : pages(guest_pages) {}
  v1::MachineState state;
  memory::Bitmap pages;           // all that went to the sink
  std::uint32_t rounds = 0;       // copies made while the guest ran
  std::uint64_t pause_pages = 0;  // copied (chase) or armed (cow) while it stood still
  std::uint64_t faults = 0;       // cow: pages that a writer waited for
  std::chrono::nanoseconds pause{};
  std::uint64_t realtime_ns = 0;  // of the instant: in the pause
};

/// Copies the pages in `since`, then what the guest wrote meanwhile, at memory speed; when little is left, pauses,
/// saves the state, copies the rest. What the sink holds then is guest memory at one instant. From there on `since`
/// collects the next generation; on an error it has all its pages back, and the guest runs as before. A paused VM stays
/// paused.
/// @param stop  looked at between two runs of pages: kCancelled
/// Owner: the thread that owns the VM.
Result<Capture> chase(Machine& machine, memory::DirtyTracker::Reader& since, PageSink& sink,
                      const std::function<bool()>& stop = {});

}  // namespace fvmm::migration
