#include "daemon/template_service.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <set>

#include "daemon/call_worker.h"
#include "daemon/checks.h"
#include "daemon/clone_disks.h"
#include "migration/generation_line.h"

namespace fvmm::daemon {

v1::TemplateInfo to_proto(const memory::TemplateInfo& info) {
  v1::TemplateInfo out;
  *out.mutable_ref() = to_ref(info);
  out.set_stored_bytes(info.stored_bytes);
  out.set_pages(info.pages);
  out.set_pins(info.pins);
  out.set_created(info.created);
  *out.mutable_config() = info.config;
  out.set_kind(info.is_delta() ? "delta" : "base");
  if (!info.parent_digest.none()) out.set_parent(info.parent_name);
  out.set_chain(info.chain == 0 ? 0 : info.chain - 1);
  out.set_runs(info.runs);
  out.set_mappable(info.is_mappable());
  for (const memory::DiskCut& cut : info.disks) {
    v1::TemplateDisk& disk = *out.add_disks();
    disk.set_disk(cut.disk);
    disk.set_layers(static_cast<std::uint32_t>(cut.layers.size()));
  }
  out.set_template_memory(info.resident_file.empty() ? "stored" : "resident");
  return out;
}

Result<net::Endpoint> parse_peer(const std::string& text) {
  net::Endpoint peer = FVMM_TRY(net::Endpoint::parse(text), "peer");
  if (peer.loopback()) return peer;
  return Error(Errc::kInvalidArgument,
               fmt::format("peer {} is not on this host: until peers are authenticated only loopback addresses are "
                           "allowed (tunnel to the peer, for example with ssh -L)",
                           text));
}

Result<v1::TemplateInfo> TemplateService::create(const v1::CreateTemplateRequest& request, const Deadline& deadline,
                                                 const std::function<bool()>& stop) {
  const std::string& kind = request.template_memory();
  if (!kind.empty() && kind != "stored" && kind != "resident") {
    return Error(Errc::kInvalidArgument, fmt::format("template memory \"{}\"; there are stored and resident", kind));
  }
  v1::TemplateInfo made = FVMM_TRY(capture(request, deadline));
  if (kind != "resident") return made;
  FVMM_TRY(load(request.name(), stop), fmt::format("template {} is made, and stored", request.name()));
  made.set_template_memory(kind);
  return made;
}

Result<v1::TemplateInfo> TemplateService::load(const std::string& name, const std::function<bool()>& stop) {
  const HostMemory host = FVMM_TRY(read_host_memory());
  return to_proto(FVMM_TRY(store_.load(name, {.available_bytes = host.available, .stop = stop})));
}

Result<v1::TemplateInfo> TemplateService::unload(const std::string& name) {
  return to_proto(FVMM_TRY(store_.unload(name)));
}

Result<v1::TemplateInfo> TemplateService::capture(const v1::CreateTemplateRequest& request, const Deadline& deadline) {
  FVMM_TRY(check_name("template", request.name()));
  if (const std::string& engine = request.engine();
      !engine.empty() && engine != "auto" && engine != "stop" && engine != "chase" && engine != "cow") {
    return Error(Errc::kInvalidArgument,
                 fmt::format("unknown engine \"{}\"; there are auto, cow, chase and stop", engine));
  }
  if (store_.find(request.name())) {
    return Error(Errc::kAlreadyExists, fmt::format("a template named {} exists", request.name()));
  }
  Claim claim = FVMM_TRY(registry_.claim(request.vm(), fmt::format("template create {}", request.name())));
  const VmView vm = claim.view();
  if (!vm.worker || (vm.state() != v1::VM_RUNNING && vm.state() != v1::VM_PAUSED)) {
    return Error(Errc::kFailedPrecondition, fmt::format("VM {} is {}: a template is taken of a running or paused VM",
                                                        request.vm(), state_text(vm.state())));
  }
  FVMM_TRY(check_disks_shareable(vm.record.config(), store_.directory()));
  v1::WorkerTemplateRequest work;
  work.set_name(request.name());
  work.set_store_directory(store_.directory().string());
  work.set_engine(request.engine());
  work.set_test_hook(request.test_hook());
  v1::TemplateInfo made = FVMM_TRY(vm.worker->client()->create_template(work, deadline));
  // Whoever looks after the answer sees what it stands on now; its watch may say so later.
  if (const auto now = vm.worker->client()->info(Deadline::after(kInfoWait))) claim.note(*now);
  return made;
}

Result<v1::TemplateList> TemplateService::list() const {
  v1::TemplateList out;
  for (const auto& info : FVMM_TRY(store_.list())) {
    v1::TemplateInfo& one = *out.add_templates() = to_proto(info);
    if (folds_ != nullptr && info.is_delta()) one.set_folding(folds_->state(info.name));
  }
  return out;
}

Result<v1::TemplateInfo> TemplateService::show(const std::string& name) const {
  memory::TemplateInfo info = FVMM_TRY(store_.show(name));
  if (info.is_delta()) {
    const auto opened = memory::OpenTemplate::open(info.directory);  // counts the runs; damage is for verify to tell
    if (opened) info.runs = opened->info().runs;
  }
  v1::TemplateInfo out = to_proto(info);
  if (folds_ != nullptr && info.is_delta()) out.set_folding(folds_->state(name));
  return out;
}

Result<v1::VerifyReport> TemplateService::verify(const std::string& name) const {
  const auto report = FVMM_TRY(store_.verify(name));
  v1::VerifyReport out;
  out.set_good(report.pages_bad == 0 && report.detail.empty());
  out.set_pages_checked(report.pages_checked);
  out.set_pages_bad(report.pages_bad);
  out.set_detail(report.detail);
  const Status disks = verify_disks(FVMM_TRY(store_.find(name)));
  if (disks) return out;
  if (disks.error().code() != Errc::kDataLoss) return disks.error();
  out.set_good(false);
  out.set_detail(fmt::format("{}{}{}", report.detail, report.detail.empty() ? "" : "; ", disks.error().message()));
  return out;
}

Status TemplateService::remove_from_store(const std::string& name) {
  Status removed = store_.remove(name);
  const bool in_use = !removed && removed.error().code() == Errc::kFailedPrecondition;
  return in_use && folds_ != nullptr && folds_->let_go(name) ? store_.remove(name) : removed;
}

// What is kept for the way back of VMs that have left is worth less than the wish to remove its template.
Status TemplateService::remove(const std::string& name) {
  Status removed = remove_from_store(name);
  if (removed || removed.error().code() != Errc::kFailedPrecondition) return removed;
  auto all = FVMM_TRY(store_.list());
  std::ranges::sort(all, std::greater(), &memory::TemplateInfo::generation);
  bool gone = false;
  for (const auto& info : all) {
    if (migration::is_of_line(info, migration::way_back_line(info.config))) gone |= store_.remove(info.name).ok();
  }
  return gone ? remove_from_store(name) : removed;
}

Result<v1::TemplateInfo> TemplateService::import(const v1::ImportRequest& request) {
  if (!request.link()) {
    return Error(Errc::kInvalidArgument, "template import takes over files by hard links only: add --link");
  }
  if (!request.directory().starts_with('/')) {
    return Error(Errc::kInvalidArgument, fmt::format("\"{}\" must be an absolute path", request.directory()));
  }
  // They never change, so that they are good before the links are made is enough.
  const auto source = FVMM_TRY(memory::OpenTemplate::open(request.directory()), "import " + request.directory());
  FVMM_TRY(verify_disks(source.info()), "import " + request.directory());
  return to_proto(FVMM_TRY(store_.import_linked(request.directory())));
}

Result<v1::TemplateRef> live_base(const VmView& vm) {
  if (!vm.worker)
    return Error(Errc::kFailedPrecondition, fmt::format("VM {} is not running", vm.record.config().name()));
  return FVMM_TRY(vm.worker->client()->info(Deadline::after(kInfoWait))).template_();
}

Result<migration::PushStats> push_with_parents(const memory::TemplateStore& store, const memory::TemplateInfo& info,
                                               const net::Endpoint& to, const Deadline& deadline,
                                               const std::function<bool(const migration::PushProgress&)>& progress) {
  migration::PushStats sum;
  if (migration::travels_as_delta(info)) {
    const auto parent = FVMM_TRY(store.find(info.parent_id, info.parent_digest), "parent of " + info.name);
    sum = FVMM_TRY(push_with_parents(store, parent, to, deadline, progress));
  }
  const auto source = FVMM_TRY(memory::OpenTemplate::open(info.directory));
  const auto one = FVMM_TRY(migration::push_template(source, to, deadline, progress),
                            fmt::format("push {} to {}", info.name, to.text()));
  sum.already_there = one.already_there;
  sum.bytes_sent += one.bytes_sent;
  sum.duration_ms += one.duration_ms;
  return sum;
}

Result<v1::TemplateInfo> TemplateService::fold(const std::string& name) {
  if (folds_ != nullptr) folds_->let_go(name);  // with somebody waiting for it, it need not be gentle
  return to_proto(FVMM_TRY(store_.fold(name)));
}

Result<v1::GcReport> TemplateService::gc() {
  std::set<std::string> wanted;  // digests that a VM's record refers to, running or not
  for (const VmView& vm : registry_.list()) wanted.insert(to_info(vm).template_().digest());
  const auto line_of = [](const std::string& name) { return name.substr(0, name.rfind('@')); };
  std::map<std::string, std::uint64_t> newest;  // of each line of generations
  for (const auto& info : FVMM_TRY(store_.list())) {
    std::uint64_t& known = newest[line_of(info.name)];
    known = std::max(known, info.generation);
  }
  const auto keep = [&](const memory::TemplateInfo& info) {
    return wanted.contains(info.digest.raw()) || newest[line_of(info.name)] == info.generation;
  };
  const auto collected = FVMM_TRY(store_.gc(keep));
  v1::GcReport report;
  for (const auto& info : collected.removed) report.add_removed(info.name);
  report.set_bytes_freed(collected.bytes_freed);
  return report;
}

Result<v1::PushEvent> TemplateService::push(const v1::PushRequest& request,
                                            const std::function<bool(const v1::PushEvent&)>& progress) {
  const net::Endpoint to = FVMM_TRY(parse_peer(request.to()));
  const auto info = FVMM_TRY(store_.find(request.name()));
  const Deadline deadline = request.timeout_ms() == 0
                                ? Deadline::after(kPushWaitMax)
                                : Deadline::after(std::chrono::milliseconds(request.timeout_ms())).sooner(kPushWaitMax);
  v1::PushEvent event;
  const auto on_progress = [&](const migration::PushProgress& at) {
    event.set_bytes_done(at.bytes_done);
    event.set_bytes_total(at.bytes_total);
    return progress(event);
  };
  if (!info.disks.empty()) {
    return Error(
        Errc::kUnimplemented,
        fmt::format("template {} holds disks, which a push does not carry: bring its directory to the other host's "
                    "filesystem, and \"template import --link\" it there",
                    info.name));
  }
  const auto stats = FVMM_TRY(push_with_parents(store_, info, to, deadline, on_progress));
  event.set_done(true);
  event.set_already_there(stats.already_there);
  event.set_bytes_sent(stats.bytes_sent);
  event.set_duration_ms(stats.duration_ms);
  return event;
}

void TemplateService::bind(control::Server& server) {
  using control::Call;
  using v1::TemplateInfo;
  using v1::TemplateName;
  server.unary<v1::CreateTemplateRequest, TemplateInfo>(
      "fvmm.v1.Templates/Create", [this](Call& call, const v1::CreateTemplateRequest& request) {
        return create(request, call.deadline(), [&call] { return call.cancelled(); });
      });
  server.unary<TemplateName, TemplateInfo>("fvmm.v1.Templates/Load", [this](Call& call, const TemplateName& request) {
    return load(request.name(), [&call] { return call.cancelled(); });
  });
  server.unary<TemplateName, TemplateInfo>(
      "fvmm.v1.Templates/Unload", [this](Call&, const TemplateName& request) { return unload(request.name()); });
  server.unary<v1::Empty, v1::TemplateList>("fvmm.v1.Templates/List",
                                            [this](Call&, const v1::Empty&) { return list(); });
  server.unary<TemplateName, TemplateInfo>("fvmm.v1.Templates/Show",
                                           [this](Call&, const TemplateName& request) { return show(request.name()); });
  server.stream<v1::PushRequest, v1::PushEvent>("fvmm.v1.Templates/Push", [this](Call& call,
                                                                                 const v1::PushRequest& request) {
    return push(request, [&call](const v1::PushEvent& event) { return !call.cancelled() && call.send(event).ok(); });
  });
  server.unary<v1::ImportRequest, TemplateInfo>(
      "fvmm.v1.Templates/Import", [this](Call&, const v1::ImportRequest& request) { return import(request); });
  server.unary<TemplateName, v1::Empty>("fvmm.v1.Templates/Remove",
                                        [this](Call&, const TemplateName& request) -> Result<v1::Empty> {
                                          FVMM_TRY(remove(request.name()));
                                          return v1::Empty();
                                        });
  server.unary<TemplateName, TemplateInfo>("fvmm.v1.Templates/Fold",
                                           [this](Call&, const TemplateName& request) { return fold(request.name()); });
  server.unary<v1::Empty, v1::GcReport>("fvmm.v1.Templates/Gc", [this](Call&, const v1::Empty&) { return gc(); });
  server.unary<TemplateName, v1::VerifyReport>(
      "fvmm.v1.Templates/Verify", [this](Call&, const TemplateName& request) { return verify(request.name()); });
}

}  // namespace fvmm::daemon
