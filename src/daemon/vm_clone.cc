// VmService::clone(): new VMs from one template, all or none.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>

#include "daemon/checks.h"
#include "daemon/clone_disks.h"
#include "daemon/spawner.h"
#include "daemon/template_service.h"
#include "daemon/vm_service.h"
#include "vmm/net_config.h"
#include "vmm/vsock_config.h"

namespace fvmm::daemon {

namespace {

// Another VM: its networks get addresses of their own, and other places if the request says so; its vsock its own path.
Status place_clone(v1::VmConfig& config, const v1::CloneRequest& request, unsigned number) {
  if (request.nets_size() != 0 && request.nets_size() != config.nets_size()) {
    return Error(Errc::kInvalidArgument,
                 fmt::format("template {} has {} networks, and {} were given (--net, once for each, in its order)",
                             request.template_(), config.nets_size(), request.nets_size()));
  }
  for (int i = 0; i < config.nets_size(); ++i) {
    v1::NetConfig& net = *config.mutable_nets(i);
    if (request.nets_size() == 0) {
      net.clear_mac();
      continue;
    }
    net = request.nets(i);
    if (net.has_tap()) net.set_tap(numbered(net.tap(), number));
    if (net.has_socket()) net.set_socket(numbered(net.socket(), number));
    if (request.count() > 1 && !net.mac().empty()) {
      return Error(Errc::kInvalidArgument, "several clones cannot have the same address: leave mac= out");
    }
  }
  vmm::give_macs(config);
  vmm::forget_vsock_path(config);
  return {};
}

}  // namespace

Result<std::vector<v1::VmRecord>> VmService::clone_records(const v1::CloneRequest& request) const {
  const unsigned count = std::max(1U, request.count());
  if (count > kClonesMax) {
    return Error(Errc::kInvalidArgument, fmt::format("at most {} clones at once, not {}", kClonesMax, count));
  }
  FVMM_TRY(check_name("VM", request.name()));
  const auto from = FVMM_TRY(store_.find(request.template_()));
  if (!holds_disks(from)) {
    return Error(
        Errc::kFailedPrecondition,
        fmt::format("template {} is of memory alone, and its VM wrote to disks: a clone would find other disks than "
                    "it remembers",
                    from.name));
  }
  std::vector<v1::VmRecord> records;
  for (unsigned i = 1; i <= count; ++i) {
    v1::VmRecord record;
    *record.mutable_config() = from.config;
    record.mutable_config()->set_id(Id::random().raw());
    if (from.config.acpi()) record.mutable_config()->set_generation_id(Id::random().raw());
    record.mutable_config()->set_name(count == 1 ? request.name() : fmt::format("{}-{}", request.name(), i));
    if (!request.tracking().empty()) record.mutable_config()->set_tracking(request.tracking());
    write_down_tracking(*record.mutable_config());
    FVMM_TRY(place_clone(*record.mutable_config(), request, i));
    const auto directory = registry_.directory_of(FVMM_TRY(Id::from_bytes(record.config().id())));
    FVMM_TRY(place_disks(*record.mutable_config(), from, request, i, directory));
    FVMM_TRY(check_config(record.config()));
    record.set_state(v1::VM_CREATED);
    record.set_fencing_token(1);
    *record.mutable_template_() = to_ref(from);
    records.push_back(std::move(record));
  }
  // Clones share what they do not write, so their sum may exceed the host; one alone may not.
  FVMM_TRY(check_fits(records.front().config(), FVMM_TRY(read_host_memory())));
  return records;
}

Status VmService::launch_all(std::vector<Claim>& claims, SteadyTime accepted, const Deadline& deadline) {
  std::vector<std::optional<Status>> results(claims.size());  // each written by one thread, read after join
  std::atomic<std::size_t> next = 0;
  std::atomic<bool> failed = false;
  const auto work = [&] {
    for (std::size_t i = next++; i < claims.size() && !failed; i = next++) {
      results[i] = launch(claims[i], accepted, deadline);
      if (!*results[i]) failed = true;
    }
  };
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < std::min<std::size_t>(claims.size(), kStartThreadsMax); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < claims.size(); ++i) {
    if (results[i] && !*results[i]) {
      return std::move(results[i]->error()).with(claims[i].view().record.config().name());
    }
  }
  return {};
}

Result<v1::VmList> VmService::clone(const v1::CloneRequest& request, const Deadline& deadline) {
  const SteadyTime accepted = std::chrono::steady_clock::now();
  auto claims = FVMM_TRY(registry_.reserve(FVMM_TRY(clone_records(request)), "clone"));
  const auto make = [&]() -> Status {
    if (request.start()) return launch_all(claims, accepted, deadline);
    for (Claim& claim : claims) FVMM_TRY(claim.change([](v1::VmRecord&) {}));
    return {};
  };
  if (Status made = make(); !made) {
    for (Claim& claim : claims) {
      if (const auto worker = claim.detach()) end_worker(*worker);
      const Status removed = claim.remove();
      if (!removed) return std::move(made.error()).with(removed.error().message());
    }
    return std::move(made.error());
  }
  v1::VmList out;
  for (const Claim& claim : claims) *out.add_vms() = to_answer(claim);
  return out;
}

}  // namespace fvmm::daemon
