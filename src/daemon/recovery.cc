#include "daemon/recovery.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "migration/generation_line.h"

namespace fvmm::daemon {
namespace {

constexpr int kOpenAttemptsMax = 16;

// A source that lives goes on sealing: what was the newest may go, or be squashed, before it is open.
Result<memory::OpenTemplate> open_before_it_goes(const memory::TemplateStore& store, const Id& vm) {
  for (int attempt = 1;; ++attempt) {
    const auto newest = FVMM_TRY(migration::newest_generation(store, vm.raw()));
    auto opened = memory::OpenTemplate::open(newest.directory);
    if (opened || opened.error().code() != Errc::kNotFound || attempt == kOpenAttemptsMax) return opened;
  }
}

}  // namespace

Result<Runnable> open_newest(const memory::TemplateStore& store, const Id& vm) {
  auto opened = FVMM_TRY(open_before_it_goes(store, vm));
  auto state = FVMM_TRY(opened.machine_state(), "generation " + opened.info().name);
  return Runnable{std::move(opened), std::move(state)};
}

Result<RightToRun> take_right(Replicas& replicas, const memory::TemplateStore& store, const Id& vm, const Admit& admit,
                              const Deadline& deadline) {
  Runnable admitted = FVMM_TRY(open_newest(store, vm));
  FVMM_TRY(admit(admitted));
  std::optional<Runnable> newest;
  const std::uint64_t token = FVMM_TRY(replicas.recover(
      vm,
      [&]() -> Result<std::uint64_t> {
        // A living source may have sealed more meanwhile: what was admitted is then not what would run.
        newest.emplace(FVMM_TRY(open_newest(store, vm)));
        const v1::VmConfig& config = newest->opened.info().config;
        if (config.SerializeAsString() != admitted.opened.info().config.SerializeAsString()) {
          return Error(Errc::kFailedPrecondition,
                       fmt::format("VM {} was replicated anew meanwhile, with another configuration: recover it again",
                                   config.name()));
        }
        return newest->state.fencing_token();
      },
      deadline));
  return RightToRun{std::move(*newest), token};
}

}  // namespace fvmm::daemon
