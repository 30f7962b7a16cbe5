#include "daemon/incoming_vm.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "daemon/call_worker.h"
#include "daemon/spawner.h"

namespace fvmm::daemon {
namespace {

bool runs(v1::VmState state) {
  return state == v1::VM_RUNNING || state == v1::VM_PAUSED;
}

}  // namespace

v1::VmRecord incoming_record(const v1::PeerHello& hello) {
  v1::VmRecord record;
  *record.mutable_config() = hello.vm();
  record.set_state(v1::VM_INCOMING);
  record.set_detail(fmt::format("coming in from {}", hello.from()));
  *record.mutable_template_() = hello.template_();
  record.set_fencing_token(hello.fencing_token());
  return record;
}

Result<Claim> claim_incoming(Registry& registry, const v1::PeerHello& hello, const v1::VmRecord& record, bool returns) {
  constexpr const char* kWhat = "migrate in";
  if (!returns) {
    auto claims = FVMM_TRY(registry.reserve({record}, kWhat));
    claims.front().let_others_wait();  // its user sees it run before we have written that down
    return std::move(claims.front());
  }
  Claim claim = FVMM_TRY(registry.claim(FVMM_TRY(Id::from_bytes(hello.vm().id())), kWhat));
  claim.let_others_wait();
  if (claim.view().record.state() == v1::VM_MOVED) return claim;
  return Error(Errc::kAborted, fmt::format("VM {} has changed here meanwhile", hello.vm().name()));
}

Status settle_incoming(Claim& claim, const std::shared_ptr<WorkerProcess>& worker, const Status& stream,
                       const WatchWorker& watch) {
  VmView vm = claim.view();
  const std::string name = vm.record.config().name();
  bool dead = !worker->alive();
  if (!dead && !runs(vm.info.state())) {
    const auto info = worker->client()->info(Deadline::after(kInfoWait));
    if (info) claim.note(*info);
    if (!info) dead = worker->wait_exit(Deadline::after(kDyingWait));
    vm = claim.view();
  }
  if (!dead && runs(vm.info.state())) {
    watch(claim.id(), worker);  // which also tries again what the disk does not take now
    spdlog::info("VM {} runs here in worker {}", name, worker->pid());
    return claim.finish_incoming([&](v1::VmRecord& record) {
      record.set_state(vm.info.state());
      record.set_detail("");
    });
  }
  if (!dead) FVMM_TRY(claim.close_session());
  const auto session = read_session(vm.directory);
  if (!dead && is_open(session)) {
    // Its worker may still get COMMIT, or an answer: it is left alone and watched.
    watch(claim.id(), worker);
    return claim.change([&](v1::VmRecord& record) {
      record.set_state(v1::VM_UNSETTLED);
      record.set_detail(fmt::format("the hand-over from {} has no answer; run \"fvmmctl migrate resolve {}\"",
                                    session->peer(), name));
    });
  }
  spdlog::warn("VM {} did not come in: {}", name,
               !stream                    ? stream.error().message()
               : vm.info.detail().empty() ? state_text(vm.info.state())
                                          : vm.info.detail());
  const std::string death = dead ? worker->how_it_ended() : "its replica was given up";
  // Read again after its end: what the worker wrote last decides.
  end_worker(*worker);
  const Status settled = claim.settle_without_worker(death);
  if (settled) {
    claim.detach();
  } else {
    watch(claim.id(), worker);  // and tried again
  }
  return settled;
}

}  // namespace fvmm::daemon
