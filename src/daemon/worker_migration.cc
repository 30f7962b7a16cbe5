// Worker: a migration away from here, and one to here.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "base/scope_exit.h"
#include "daemon/worker_process.h"
#include "net/channel.h"
#include "vmm/net_config.h"

namespace fvmm::daemon {
namespace {

struct Plan {
  migration::Mode mode;
  std::string why;
};

constexpr double kAssumedBytesPerSecond = 1e9;  // of a link that nobody has measured yet, where no limit is given

// Suspend has one round trip less and stops the guest only once; live pays when the delta does not fit into the pause.
Result<Plan> choose_by_delta(migration::Guest& guest, const v1::MigrateRequest& wanted) {
  if (guest.machine->paused()) return Plan{migration::Mode::kSuspend, "the VM is paused anyway"};
  FVMM_TRY(guest.machine->dirty().harvest());
  migration::Progress now;
  const bool by_way_back = migration::may_go_by_way_back(guest, wanted.to());
  now.pages_left = (by_way_back ? guest.way_back->since : guest.since_base)->pending().count();
  now.bytes_per_second = kAssumedBytesPerSecond;
  if (wanted.bandwidth_bytes_s() != 0) {
    now.bytes_per_second = std::min(now.bytes_per_second, static_cast<double>(wanted.bandwidth_bytes_s()));
  }
  const auto pause = migration::expected_downtime(now);
  const bool fits = pause <= std::chrono::microseconds(wanted.max_downtime_us());
  return Plan{fits ? migration::Mode::kSuspend : migration::Mode::kLive,
              fmt::format("a pause for the delta of {} pages would take about {:.1f} ms, {} --max-downtime {:.1f} ms",
                          now.pages_left, to_ms(pause), fits ? "within" : "more than",
                          static_cast<double>(wanted.max_downtime_us()) / 1e3)};
}

Result<Plan> choose_mode(const v1::MigrateRequest& request, migration::Guest& guest) {
  const std::string& wanted = request.mode();
  using migration::Mode;
  if (wanted == "suspend") return Plan{Mode::kSuspend, "asked for"};
  if (wanted == "precopy") return Plan{Mode::kPrecopy, "asked for"};
  if (wanted == "live") return Plan{Mode::kLive, "asked for"};
  if (!wanted.empty() && wanted != "auto") {
    return Error(Errc::kInvalidArgument, "mode \"" + wanted + "\"; there are auto, suspend, precopy, live");
  }
  return choose_by_delta(guest, request);
}

}  // namespace

void Worker::register_migration() {
  using control::Call;
  const std::string service = "fvmm.v1.Worker/";
  server_->stream<v1::WorkerMigrateRequest, v1::MigrateEvent>(
      service + "Migrate",
      [this](Call& call, const v1::WorkerMigrateRequest& request) { return migrate(call, request); });
  server_->unary<v1::Empty, v1::Empty>(service + "CancelMigration",
                                       [this](Call&, const v1::Empty&) { return cancel_migration(); });
  server_->stream<v1::WorkerReceiveRequest, v1::WorkerInfo>(
      service + "Receive",
      [this](Call& call, const v1::WorkerReceiveRequest& request) { return receive(call, request); });
  server_->unary<v1::WorkerAddConnectionRequest, v1::Empty>(
      service + "AddConnection",
      [this](Call& call, const v1::WorkerAddConnectionRequest& request) { return add_connection(call, request); });
  server_->unary<v1::WorkerSettleRequest, v1::WorkerInfo>(
      service + "Settle", [this](Call&, const v1::WorkerSettleRequest& request) { return settle(request); });
  server_->unary<v1::SessionQuery, v1::SessionAnswer>(
      service + "AskSession", [this](Call&, const v1::SessionQuery& query) { return ask_session(query); });
}

Result<v1::MigrateEvent> Worker::migrate(control::Call& call, const v1::WorkerMigrateRequest& request) {
  FVMM_TRY(check_not_replicated());
  GuestSlot::Held held = FVMM_TRY(slot_.take("migrate"));
  FVMM_TRY(check_not_replicated());  // it may have begun in between; from here on it cannot
  if (held.empty()) return Error(Errc::kFailedPrecondition, "this worker has no VM yet");
  const v1::VmState before = board_.get().state();
  if (before != v1::VM_RUNNING && before != v1::VM_PAUSED) {
    return Error(Errc::kFailedPrecondition, "only a running or paused VM can be migrated");
  }
  v1::MigrateEvent last;
  *last.mutable_result() = FVMM_TRY(migrate_guest(*held, request, call));
  return last;
}

Result<v1::MigrateResult> Worker::migrate_guest(migration::Guest& guest, const v1::WorkerMigrateRequest& request,
                                                control::Call& call) {
  const v1::MigrateRequest& wanted = request.request();
  const v1::VmState before = board_.get().state();
  before_migration_ = before;
  migration::SourceOptions options;
  options.scan = FVMM_TRY(migration::find_delta(*guest.machine));
  const Plan plan = FVMM_TRY(choose_mode(wanted, guest));
  options.mode = plan.mode;
  options.why_mode = plan.why;
  options.peer = wanted.to();
  if (wanted.nets_size() != 0) options.config_there = FVMM_TRY(vmm::place_nets(guest.config, wanted.nets()));
  options.from = request.from();
  if (wanted.connections() != 0) options.connections = wanted.connections();
  if (wanted.max_downtime_us() != 0) options.max_downtime = std::chrono::microseconds(wanted.max_downtime_us());
  options.allow_throttle = wanted.allow_throttle();
  options.bandwidth_bytes_s = wanted.bandwidth_bytes_s();
  if (wanted.timeout_ms() != 0) options.timeout = std::chrono::milliseconds(wanted.timeout_ms());
  if (options_.test_hooks) {
    options.peer_test_hook = migration::peer_part(wanted.test_hook());
    if (options.peer_test_hook.empty()) options.on_step = FVMM_TRY(migration::parse_step_hook(wanted.test_hook()));
  }
  options.on_event = [this, &wanted, &call](const v1::MigrateEvent& event) {
    board_.change([&](v1::WorkerInfo& info) {
      info.set_detail(fmt::format("migrating to {}: round {}, {} pages sent, {} left", wanted.to(), event.round(),
                                  event.pages_sent(), event.pages_left()));
    });
    (void)call.send(event);  // nobody watching is fine
  };
  migration::TcpTransport transport(FVMM_TRY(net::Endpoint::parse(wanted.to())));
  options.by_way_back = plan.mode != migration::Mode::kPrecopy && migration::may_go_by_way_back(guest, wanted.to());
  if (options.by_way_back) options.why_mode = plan.why + "; against what the peer kept of it, the way back";
  migration::SourceState ended{};
  v1::MigrateResult result = run_session(guest, options, transport, ended);
  // What the peer kept for this return is gone, not sealed yet, or another one: the template will do.
  const bool not_there = result.code() == static_cast<std::uint32_t>(Errc::kNotFound) ||
                         result.code() == static_cast<std::uint32_t>(Errc::kFailedPrecondition);
  if (options.by_way_back && result.result() == "aborted" && not_there) {
    spdlog::warn("what {} kept for the way back cannot be used ({}): against the template instead", wanted.to(),
                 result.error());
    options.by_way_back = false;
    options.why_mode = plan.why;
    result = run_session(guest, options, transport, ended);
  }
  if (ended == migration::SourceState::kDone) vm_->disconnect();  // it may come back before this worker ends
  // Given back, but its disks could not be taken back.
  const bool stands = guest.machine->paused() && guest.machine->fenced();
  board_.change([&](v1::WorkerInfo& info) {
    switch (ended) {
      case migration::SourceState::kDone:
        info.set_state(v1::VM_MOVED);
        info.set_moved_to(wanted.to());
        info.set_detail("");
        return;
      case migration::SourceState::kUnknown:
        info.set_state(v1::VM_UNSETTLED);
        info.set_detail("the peer may run it; see fvmmctl migrate resolve");
        return;
      default:
        // A guest that stopped by itself meanwhile has the last word.
        if (info.state() == v1::VM_MIGRATING) info.set_state(stands ? v1::VM_PAUSED : before);
        info.set_detail(result.error());
    }
  });
  return result;
}

v1::MigrateResult Worker::run_session(migration::Guest& guest, migration::SourceOptions options,
                                      migration::Transport& transport, migration::SourceState& ended) {
  const bool on_template = options.mode != migration::Mode::kPrecopy && !guest.base.id().empty();
  const bool by_way_back = options.by_way_back;
  const std::string to = options.peer;
  migration::FileJournal journal(vm_directory_);
  const auto session = std::make_shared<migration::SourceSession>(guest, std::move(options), transport, journal);
  {
    const std::lock_guard lock(session_mutex_);
    source_ = session;
  }
  board_.change([&](v1::WorkerInfo& info) {  // whoever sees it can cancel it
    info.set_detail(fmt::format("migrating to {}", to));
    if (info.state() == before_migration_) info.set_state(v1::VM_MIGRATING);
  });
  const ScopeExit forget([this] {
    const std::lock_guard lock(session_mutex_);
    left_ = {source_->id(), source_->state()};
    source_.reset();
  });
  v1::MigrateResult result = session->run();
  ended = session->state();
  if (ended == migration::SourceState::kDone && on_template) {
    departed_.emplace(migration::Departed{session->id(), session->final_state(), session->take_way_back(), by_way_back,
                                          session->base_digest()});
  }
  return result;
}

Result<v1::Empty> Worker::cancel_migration() {
  std::shared_ptr<migration::SourceSession> session;
  {
    const std::lock_guard lock(session_mutex_);
    session = source_;
  }
  if (!session) return Error(Errc::kFailedPrecondition, "no migration is under way");
  session->cancel();
  return v1::Empty();
}

Result<v1::WorkerInfo> Worker::receive(control::Call& call, const v1::WorkerReceiveRequest& request) {
  auto received = receive_guest(call, request);
  if (received) agree_on_way_back();  // the guest rests here by now, and serves other commands, too
  return received;
}

Result<v1::WorkerInfo> Worker::receive_guest(control::Call& call, const v1::WorkerReceiveRequest& request) {
  GuestSlot::Held held = FVMM_TRY(slot_.take("receive"));
  if (!held.empty()) return Error(Errc::kFailedPrecondition, "this worker already has a VM");
  auto descriptors = call.take_descriptors();
  if (descriptors.empty()) return Error(Errc::kInvalidArgument, "Receive needs the control connection");
  auto control = FVMM_TRY(net::Channel::adopt(std::move(descriptors[0])));
  descriptors.erase(descriptors.begin());  // the rest are its networks
  destination_journal_ = std::make_unique<migration::FileJournal>(request.vm_directory());
  migration::DestinationSession::Environment environment;
  environment.make_guest = [this, &request, &descriptors](const v1::PeerHello&) {
    return make_replica(request, std::move(descriptors));
  };
  environment.journal = destination_journal_.get();
  environment.boot_id = boot_id_;
  environment.on_step = FVMM_TRY(migration::parse_step_hook(options_.test_hooks ? request.hello().test_hook() : ""));
  environment.on_started = [this, &call](migration::Guest& guest) {
    vm_->announce_nets();
    show(guest);
    board_.change([&guest](v1::WorkerInfo& info) {
      // The guest may already have stopped by itself.
      if (info.state() == v1::VM_INCOMING) info.set_state(guest.machine->paused() ? v1::VM_PAUSED : v1::VM_RUNNING);
      info.set_detail("");
    });
    (void)call.send(board_.get());
  };
  board_.change([&](v1::WorkerInfo& info) {
    *info.mutable_config() = request.hello().vm();
    info.set_state(v1::VM_INCOMING);
  });
  const auto session =
      std::make_shared<migration::DestinationSession>(request.hello(), std::move(control), std::move(environment));
  {
    const std::lock_guard lock(session_mutex_);
    destination_ = session;
  }
  auto guest = session->run();
  if (!guest) {
    board_.set_state(v1::VM_FAILED, guest.error().message());
    return std::move(guest.error()).with("incoming " + request.hello().vm().name());
  }
  held.fill(std::move(*guest));
  return board_.get();
}

Result<v1::Empty> Worker::add_connection(control::Call& call, const v1::WorkerAddConnectionRequest& request) {
  std::shared_ptr<migration::DestinationSession> session;
  {
    const std::lock_guard lock(session_mutex_);
    session = destination_;
  }
  if (!session || session->id().raw() != request.session()) {
    return Error(Errc::kNotFound, "no such session is coming in here");
  }
  auto descriptors = call.take_descriptors();
  if (descriptors.size() != 1) return Error(Errc::kInvalidArgument, "AddConnection needs one connection");
  migration::DataConnection connection;
  connection.index = request.index();
  connection.stream = FVMM_TRY(net::Channel::adopt(std::move(descriptors[0])));
  FVMM_TRY(session->add_connection(std::move(connection)));
  return v1::Empty();
}

// The end of an unknown hand-over, as the peer or an operator decided.
Result<v1::WorkerInfo> Worker::settle(const v1::WorkerSettleRequest& request) {
  GuestSlot::Held held = FVMM_TRY(slot_.take("resolve"));
  const v1::VmState state = board_.get().state();
  // A departure that was aborted and could not be recorded: the guest runs, the record alone is open.
  const bool runs = request.resume() && (state == v1::VM_RUNNING || state == v1::VM_PAUSED);
  if (held.empty() || (state != v1::VM_UNSETTLED && !runs)) {
    return Error(Errc::kFailedPrecondition, "nothing is unsettled here");
  }
  // Whoever runs it elsewhere has its disks: no word and no flag overrules that.
  if (request.resume()) FVMM_TRY(held->machine->take_disks(), "the VM may run elsewhere");
  auto record = FVMM_TRY(migration::read_session_record(vm_directory_));
  record.set_outcome(request.resume() ? v1::OUTCOME_ABORTED : v1::OUTCOME_STARTED);
  FVMM_TRY(migration::FileJournal(vm_directory_).write(record));
  if (runs) return board_.get();
  if (!request.resume()) {
    vm_->disconnect();
    board_.change([&](v1::WorkerInfo& info) {
      info.set_state(v1::VM_MOVED);
      info.set_moved_to(record.peer());
      info.set_detail("");
    });
    return board_.get();
  }
  board_.set_state(before_migration_, "");
  if (before_migration_ != v1::VM_PAUSED) FVMM_TRY(held->machine->resume());
  return board_.get();
}

Result<v1::SessionAnswer> Worker::ask_session(const v1::SessionQuery& query) {
  std::shared_ptr<migration::DestinationSession> session;
  {
    const std::lock_guard lock(session_mutex_);
    if (source_ && source_->id().raw() == query.session()) return migration::answer_of(source_->state());
    if (left_ && left_->session.raw() == query.session()) return migration::answer_of(left_->state);
    session = destination_;
  }
  if (!session || session->id().raw() != query.session()) {
    return Error(Errc::kNotFound, "this worker knows no such session");
  }
  return session->answer();
}

}  // namespace fvmm::daemon
