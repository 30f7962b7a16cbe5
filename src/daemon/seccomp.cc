#include "daemon/seccomp.h"

#include <fmt/format.h>
#include <seccomp.h>

#include <array>
#include <cerrno>
#include <memory>
#include <utility>

#include "daemon/seccomp_rules.h"

namespace fvmm::daemon {
namespace {

constexpr std::array<std::pair<SeccompMode, std::string_view>, 3> kModes{
    {{SeccompMode::kOff, "off"}, {SeccompMode::kLog, "log"}, {SeccompMode::kOn, "on"}}};

/// libseccomp's functions return a negative errno.
Status check(int result, std::string_view what) {
  if (result >= 0) return {};
  if (result == -EINVAL || result == -EOPNOTSUPP) {
    return Error(Errc::kUnimplemented,
                 fmt::format("{}: this kernel or libseccomp lacks it (CONFIG_SECCOMP_FILTER); without a filter: "
                             "fvmmd --seccomp off",
                             what),
                 -result);
  }
  return Error(Errc::kIo, std::string(what), -result);
}

}  // namespace

std::string_view to_string(SeccompMode mode) {
  for (const auto& [each, word] : kModes) {
    if (each == mode) return word;
  }
  return "off";
}

Result<SeccompMode> parse_seccomp(std::string_view text) {
  for (const auto& [mode, word] : kModes) {
    if (word == text) return mode;
  }
  return Error(Errc::kInvalidArgument, fmt::format("\"{}\" is not on, log or off", text));
}

Status enter_seccomp(SeccompMode mode) {
  if (mode == SeccompMode::kOff) return {};
  const std::unique_ptr<void, decltype(&::seccomp_release)> filter(
      ::seccomp_init(mode == SeccompMode::kOn ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_LOG), &::seccomp_release);
  if (!filter) return Error(Errc::kUnimplemented, "seccomp_init: libseccomp cannot filter on this kernel");
  FVMM_TRY(check(::seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_TSYNC, 1), "seccomp filter of all threads"));
  FVMM_TRY(check(::seccomp_attr_set(filter.get(), SCMP_FLTATR_CTL_OPTIMIZE, 2), "seccomp filter as a tree"));
  for (const SeccompRule& rule : seccomp_rules()) {
    const int added =
        ::seccomp_rule_add_array(filter.get(), rule.error == 0 ? SCMP_ACT_ALLOW : SCMP_ACT_ERRNO(rule.error), rule.call,
                                 static_cast<unsigned>(rule.arguments.size()), rule.arguments.data());
    FVMM_TRY(check(added, fmt::format("seccomp rule for call {}", rule.call)));
  }
  return check(::seccomp_load(filter.get()), "load the seccomp filter");
}

}  // namespace fvmm::daemon
