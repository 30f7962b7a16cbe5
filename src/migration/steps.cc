#include "migration/steps.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <csignal>
#include <thread>

namespace fvmm::migration {

Result<StepHook> parse_step_hook(std::string_view text) {
  if (text.empty()) return StepHook{};
  const auto colon = text.find(':');
  const std::string verb(text.substr(0, colon));
  const std::string wanted(colon == std::string_view::npos ? "" : text.substr(colon + 1));
  if (wanted.empty() || (verb != "fail" && verb != "kill" && verb != "stall" && verb != "delay")) {
    return Error(Errc::kInvalidArgument,
                 "test hook \"" + std::string(text) + "\"; write fail:STEP, kill:STEP, stall:STEP or delay:STEP");
  }
  return StepHook([verb, wanted](std::string_view step) -> Status {
    if (step != wanted) return {};
    if (verb == "kill") ::kill(::getpid(), SIGKILL);
    if (verb != "fail") spdlog::info("test hook holds step {}", wanted);
    if (verb == "delay") {
      std::this_thread::sleep_for(kStepDelay);
      return {};
    }
    if (verb == "stall") {
      for (int i = 0; i < 3600; ++i) ::sleep(1);
    }
    return Error(Errc::kAborted, "test hook at step " + wanted);
  });
}

std::string peer_part(const std::string& text) {
  constexpr std::string_view kPeer = "peer-";
  return text.starts_with(kPeer) ? text.substr(kPeer.size()) : std::string();
}

}  // namespace fvmm::migration
