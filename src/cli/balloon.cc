#include "cli/balloon.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <ostream>

#include "base/units.h"
#include "cli/cli11.h"

namespace fvmm::cli {
namespace {

std::string sizes(const v1::BalloonInfo& balloon) {
  return fmt::format("target {}, actual {}", format_bytes(balloon.target_bytes()),
                     format_bytes(balloon.actual_bytes()));
}

int set_target(Session& session, const std::string& name, const std::string& target) {
  const auto bytes = parse_bytes(target);
  if (!bytes) return session.fail(Error(bytes.error().code(), "--target: " + bytes.error().message()), kUsage);
  v1::BalloonRequest request;
  request.set_name(name);
  request.set_target_bytes(*bytes);
  v1::VmInfo answer;
  return session.call("fvmm.v1.Vms/Balloon", request, answer, kCallTimeout,
                      [&] { session.out() << name << ": balloon: " << sizes(answer.balloon()) << '\n'; });
}

}  // namespace

void add_balloon(CLI::App& vm, Chosen& chosen) {
  auto name = std::make_shared<std::string>();
  auto target = std::make_shared<std::string>();
  CLI::App& command = *vm.add_subcommand("balloon", "How much memory the guest shall give back; it takes its time");
  command.add_option("NAME", *name, "VM, made with --balloon")->required();
  command.add_option("--target", *target, "Size of the balloon: 512M; 0 gives the guest all its memory again")
      ->required();
  command.callback([&chosen, name, target] {
    chosen = [name, target](Session& session) { return set_target(session, *name, *target); };
  });
}

std::vector<std::vector<std::string>> balloon_rows(const v1::VmInfo& vm) {
  const bool has_one = std::ranges::any_of(vm.config().virtio(), [](const auto& one) { return one.has_balloon(); });
  if (!has_one) return {};
  if (!vm.has_balloon()) return {{"balloon", "yes"}};
  const v1::BalloonInfo& balloon = vm.balloon();
  std::string pages = fmt::format("{} given back", balloon.given_back_pages());
  if (balloon.not_given_back_pages() > 0) pages += fmt::format(", {} not", balloon.not_given_back_pages());
  std::vector<std::vector<std::string>> rows{{"balloon", sizes(balloon)}, {"balloon pages", pages}};
  for (const v1::BalloonStatistic& one : balloon.statistics()) {
    rows.push_back({"guest " + one.name(), std::to_string(one.value())});
  }
  return rows;
}

}  // namespace fvmm::cli
