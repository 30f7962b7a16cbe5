#include "daemon/recovery.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "migration/generation_line.h"

namespace fvmm::daemon {

Result<Runnable> open_newest(const memory::TemplateStore& store, const Id& vm) {
  const auto newest = FVMM_TRY(migration::newest_generation(store, vm.raw()));
  auto opened = FVMM_TRY(memory::OpenTemplate::open(newest.directory));
  FVMM_TRY(opened.check_mappable());
  auto state = FVMM_TRY(opened.machine_state(), "generation " + newest.name);
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
