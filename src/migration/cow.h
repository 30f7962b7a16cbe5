// Capturing a generation of a running VM: engine `cow`. DESIGN: templating a running VM.
#pragma once

#include <cstdint>
#include <functional>

#include "memory/instant_copy.h"
#include "migration/capture.h"

namespace fvmm::migration {

inline constexpr std::uint32_t kCowRoundsMax = 4;    // of arming while the guest runs
inline constexpr std::uint64_t kCowPausePages = 64;  // so few are left: arming them takes 0.2 ms at most

/// The same as chase(), but the instant is the pause at the start: the pages in `since` are write-protected, most of
/// them before it, the guest is paused for its state and the rest of them, and runs on while they are copied. A write
/// to a page that was not copied yet waits until it is, 40 to 80 us, or for as long as the sink is full and
/// kStagedPagesMax such pages wait for it. On an error nothing stays protected, nobody waits, and `since` has all its
/// pages back. Each page goes to the sink once; the sink need not reserve.
/// @param copy  of this machine's memory; anonymous memory or tmpfs, for nothing else can be protected
/// @param stop  looked at between two runs of pages, before and after the pause: kCancelled
/// Owner: the thread that owns the VM.
Result<Capture> cow(Machine& machine, memory::DirtyTracker::Reader& since, PageSink& sink, memory::InstantCopy& copy,
                    const std::function<bool()>& stop = {});

}  // namespace fvmm::migration
