// Test hook: every step of a session announces itself, and a test makes it fail, cut its connections, or kill the
// process.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace fvmm::migration {

inline constexpr std::chrono::seconds kStepDelay{2};  // long enough for a test to act meanwhile

/// Called on the session's thread just before the named step. An error makes the step fail with it. Empty in
/// production.
using StepHook = std::function<Status(std::string_view step)>;

/// "peer-fail:load" is for the other side and is returned without its prefix; everything else is for this one: empty.
std::string peer_part(const std::string& text);

/// Hook from its text: "fail:STEP" (the step fails), "kill:STEP" (SIGKILL to this process), "stall:STEP" (waits 1 h in
/// slices, for tests of deadlines elsewhere), "delay:STEP" (waits kStepDelay, then goes on); what holds a step logs it
/// first. kInvalidArgument for another text. Empty text: no hook.
Result<StepHook> parse_step_hook(std::string_view text);

}  // namespace fvmm::migration
