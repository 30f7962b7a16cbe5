#include "migration/source.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <thread>

#include "base/check.h"
#include "migration/convergence.h"
#include "migration/refusal.h"
#include "net/frame.h"

namespace fvmm::migration {

std::string_view to_string(Mode mode) {
  switch (mode) {
    case Mode::kSuspend:
      return "suspend";
    case Mode::kPrecopy:
      return "precopy";
    case Mode::kLive:
      return "live";
  }
  return "invalid";
}

SourceSession::SourceSession(Guest& guest, SourceOptions options, Transport& transport, Journal& journal)
    : guest_(guest),
      options_(std::move(options)),
      transport_(transport),
      journal_(journal),
      deadline_(Deadline::after(options_.timeout)),
      began_(std::chrono::steady_clock::now() - options_.scan),
      phase_began_(began_),
      pacer_(options_.bandwidth_bytes_s) {
  FVMM_CHECK(!options_.by_way_back || (guest_.way_back && options_.mode != Mode::kPrecopy), "there is a way back");
  options_.connections = std::clamp(options_.connections, 1U, kConnectionsMax);
  if (options_.scan.count() != 0) phase_done("scan");
}

SourceSession::~SourceSession() = default;

v1::MigrateResult SourceSession::run() {
  const auto all = [&]() -> Status {
    FVMM_TRY(connect());
    FVMM_TRY(copy_rounds());
    FVMM_TRY(stop_and_copy());
    return commit();
  };
  Status status = all();
  pause_begins_.reset();
  // A session that was cancelled because of it names the reason.
  if (const Status may = guest_.machine->fenced(); !status && !may && may_run_here(state_)) status = may;
  if (!status) status = explain(std::move(status.error()));
  if (!status) back_out(status.error());
  round_.reset();  // with the guest in hand: who holds this object for cancel() may outlast that
  return report(status);
}

void SourceSession::cancel() {
  if (committing_) return;
  cancelled_ = true;
  pacer_.cancel();
  const std::lock_guard lock(streams_mutex_);
  if (control_ && !committing_) control_->cancel();
  for (auto& stream : data_) {
    if (!committing_) stream->cancel();
  }
}

void SourceSession::advance(SourceEvent event) {
  const auto to = next(state_.load(), event);
  FVMM_CHECK(to.has_value(), "the session's code follows its state machine");
  state_ = *to;
}

Status SourceSession::step(std::string_view name) {
  if (!committing_) FVMM_TRY(guest_.machine->fenced());
  if (cancelled_ && !committing_) return Error(Errc::kCancelled, "cancelled");
  if (deadline_.passed() && !committing_)
    return Error(Errc::kDeadlineExceeded, "the migration's time is up; see --timeout");
  return options_.on_step ? options_.on_step(name) : Status{};
}

// What the peer's copy lacks.
const memory::Bitmap& SourceSession::delta() const {
  return options_.by_way_back ? guest_.way_back->since->pending() : guest_.since_base->pending();
}

// What is known to differ already. Only a delta is worth a hint: a full copy fills everything anyway.
void SourceSession::hint(v1::PeerHello& hello) const {
  if (options_.mode == Mode::kPrecopy) return;
  const auto ranges = delta().ranges(kShardPages);
  for (std::size_t i = 0; i < std::min(ranges.size(), kHintRangesMax); ++i) {
    hello.add_expected(ranges[i].first);
    hello.add_expected(ranges[i].count);
  }
}

v1::PeerHello SourceSession::hello() const {
  v1::PeerHello hello;
  hello.set_version(kPeerVersion);
  hello.set_purpose(v1::MIGRATE);
  hello.set_session(session_.raw());
  hello.set_connections(options_.connections);
  *hello.mutable_vm() = options_.config_there.value_or(guest_.config);
  hello.set_mode(std::string(to_string(options_.mode)));
  if (options_.mode != Mode::kPrecopy) *hello.mutable_template_() = guest_.base;  // precopy is a copy of everything
  if (options_.by_way_back) {
    hello.mutable_template_()->set_id(guest_.way_back->generation.raw());
    hello.mutable_template_()->clear_digest();  // of an older peer: known to it alone, which has sealed it since
    hello.mutable_template_()->clear_name();
    if (const auto& known = guest_.way_back->digest; !known.none()) hello.mutable_template_()->set_digest(known.raw());
  }
  hello.set_agrees_way_back(!hello.template_().id().empty());
  hello.set_fencing_token(guest_.fencing_token + 1);
  *hello.mutable_cpu() = guest_.machine->cpu();
  hello.set_from(options_.from);
  hello.set_timeout_ms(static_cast<std::uint32_t>(options_.timeout.count()));
  hello.set_realtime_ns(static_cast<std::uint64_t>(system_clock().realtime_ns()));
  hello.set_test_hook(options_.peer_test_hook);
  return hello;
}

memory::Digest SourceSession::base_digest() const {
  if (options_.by_way_back) return guest_.way_back->digest;
  return Id::from_bytes(guest_.base.digest()).value_or(Id{});
}

std::unique_ptr<net::Stream> SourceSession::take_way_back() {
  if (state_ != SourceState::kDone || !peer_agrees_ || options_.mode == Mode::kPrecopy) return nullptr;
  const std::lock_guard lock(streams_mutex_);
  return std::move(control_);
}

Status SourceSession::connect() {
  FVMM_TRY(step("connect"));
  {
    auto stream = FVMM_TRY(transport_.connect(deadline_));
    const std::lock_guard lock(streams_mutex_);
    control_ = std::move(stream);
  }
  FVMM_TRY(step("hello"));
  FVMM_TRY(guest_.machine->dirty().harvest());
  v1::PeerHello greeting = hello();
  hint(greeting);
  FVMM_TRY(net::send_message(*control_, net::FrameType::kHello, greeting, deadline_), "send Hello");
  FVMM_TRY(step("leaving"));  // while the peer prepares
  FVMM_TRY(write_record(v1::OUTCOME_OPEN), "record the session");
  recorded_ = true;
  FVMM_TRY(step("ready"));
  FVMM_TRY(expect(v1::PEER_READY, deadline_), "waiting for READY");
  for (unsigned i = 0; i < options_.connections; ++i) {
    FVMM_TRY(step("data"));
    auto stream = FVMM_TRY(transport_.connect(deadline_), "data connection");
    v1::PeerHello data;
    data.set_version(kPeerVersion);
    data.set_purpose(v1::DATA);
    data.set_session(session_.raw());
    data.set_index(i);
    FVMM_TRY(net::send_message(*stream, net::FrameType::kHello, data, deadline_), "data connection");
    senders_.push_back(std::make_unique<PageSender>(*stream, guest_.machine->memory().host_base(), &pacer_));
    const std::lock_guard lock(streams_mutex_);
    data_.push_back(std::move(stream));
  }
  advance(SourceEvent::kHelloOk);
  setup_ms_ = to_ms(std::chrono::steady_clock::now() - began_);
  phase_done("setup");
  return {};
}

// "Broken pipe" is how a refusal looks from a data connection: the reason is our own clock, or on its way on the
// control connection.
Error SourceSession::explain(Error error) {
  if (cancelled_ || !may_run_here(state_.load())) return error;
  if (deadline_.passed()) {
    return Error(Errc::kDeadlineExceeded,
                 fmt::format("the migration's time is up; see --timeout ({})", error.message()));
  }
  if (!control_ || error.code() != Errc::kUnavailable || state_ == SourceState::kConnecting) return error;
  v1::PeerMessage message;
  const Deadline wait = Deadline::after(kReasonWait);
  if (!net::receive_message(*control_, net::FrameType::kControl, message, wait)) return error;
  const bool refused = message.kind() == v1::PEER_REJECTED || message.kind() == v1::PEER_REFUSED_DURABLY;
  return refused ? refusal(message, options_.peer) : error;
}

Result<v1::PeerMessage> SourceSession::expect(v1::PeerKind wanted, const Deadline& deadline) {
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(*control_, net::FrameType::kControl, message, deadline));
  if (message.kind() == wanted) {
    for (const v1::Timing& timing : message.timings()) {
      v1::Phase phase;
      phase.set_name("peer_" + timing.name());
      phase.set_ms(timing.ms());
      phases_.push_back(std::move(phase));
    }
    return message;
  }
  if (message.kind() == v1::PEER_REJECTED || message.kind() == v1::PEER_REFUSED_DURABLY) {
    if (message.kind() == v1::PEER_REFUSED_DURABLY && state_ == SourceState::kCommitting) {
      advance(SourceEvent::kRefusedDurably);
    }
    return refusal(message, options_.peer);
  }
  return Error(Errc::kDataLoss, fmt::format("peer {}: message {} where {} was due", options_.peer,
                                            v1::PeerKind_Name(message.kind()), v1::PeerKind_Name(wanted)));
}

Status SourceSession::say(const v1::PeerMessage& message, const Deadline& deadline) {
  return net::send_message(*control_, net::FrameType::kControl, message, deadline);
}

Status SourceSession::write_record(v1::SessionOutcome outcome) {
  v1::SessionRecord record;
  record.set_session(session_.raw());
  record.set_vm(guest_.config.id());
  record.set_role(v1::ROLE_LEAVING);
  record.set_outcome(outcome);
  record.set_peer(options_.peer);
  record.set_boot_id(guest_.machine->cpu().boot_id());
  record.set_fencing_token(guest_.fencing_token + 1);
  return journal_.write(record);
}

// Until COMMIT a failure gives the guest back; the record says so before it runs again.
void SourceSession::back_out(const Error& error) {
  spdlog::warn("migration of {} to {}: {} in state {}", guest_.config.name(), options_.peer, error.message(),
               to_string(state_.load()));
  if (throttle_ != 0) guest_.machine->throttle(0);  // also of a guest that stays frozen: somebody may resume it
  if (state_ == SourceState::kCommitting) {
    advance(SourceEvent::kFailed);
    ask_until_known();
  } else if (may_run_here(state_.load()) && state_ != SourceState::kAborted) {
    if (control_) {
      v1::PeerMessage abort;
      abort.set_kind(v1::PEER_ABORT);
      abort.set_reason(error.message());
      (void)say(abort, Deadline::after(std::chrono::milliseconds(200)));  // a courtesy: closing says the same
    }
    for (auto& stream : data_) stream->cancel();  // the peer reads these first, and shall not wait out its deadline
    advance(SourceEvent::kFailed);
  }
  if (state_ != SourceState::kAborted) return;
  Status recorded;
  if (recorded_) recorded = write_record(v1::OUTCOME_ABORTED);
  const Status disks = guest_.machine->take_disks();
  if (!disks) spdlog::error("disks after an aborted migration: {}; the VM stays paused", disks.error().message());
  if (we_paused_) {
    const Status resumed = guest_.machine->resume();
    if (!resumed) spdlog::error("resume after an aborted migration: {}", resumed.error().message());
    downtime_ms_ = to_ms(std::chrono::steady_clock::now() - paused_at_);
  }
  // An open record is the safe side: a restart would ask for `migrate resolve`, it would not run twice.
  if (!recorded)
    recorded = write_last_record([this] { return write_record(v1::OUTCOME_ABORTED); }, options_.waits.record);
  if (!recorded) spdlog::error("record of the aborted session: {}", recorded.error().message());
}

// The connection broke after COMMIT: the peer knows what became of it, so ask, within the time that is left.
void SourceSession::ask_until_known() {
  const Deadline limit = Deadline::after(options_.waits.asking);
  while (!limit.passed()) {
    const auto answer = ask_session(transport_, session_, guest_.config.id(), limit.sooner(options_.waits.ask));
    if (answer && answer->outcome() == "started") {
      downtime_ms_ = to_ms(std::chrono::steady_clock::now() - paused_at_);
      return advance(SourceEvent::kStarted);
    }
    if (answer && answer->outcome() == "refused") return advance(SourceEvent::kRefusedDurably);
    if (answer) return;                                     // "unknown" will not change by asking again
    std::this_thread::sleep_for(options_.waits.ask_pause);  // between attempts to reach the peer
  }
}

v1::SessionAnswer answer_of(SourceState state) {
  v1::SessionAnswer answer;
  switch (state) {
    case SourceState::kDone:
      answer.set_outcome("started");
      answer.set_detail("the destination has said so");
      return answer;
    case SourceState::kAborted:
      answer.set_outcome("refused");
      answer.set_detail("the source has it back");
      return answer;
    default:
      answer.set_outcome("unknown");
      answer.set_detail("the source waits for the answer itself");
      return answer;
  }
}

Result<v1::SessionAnswer> ask_session(Transport& transport, const Id& session, const std::string& vm,
                                      const Deadline& deadline) {
  auto stream = FVMM_TRY(transport.connect(deadline));
  v1::PeerHello hello;
  hello.set_version(kPeerVersion);
  hello.set_purpose(v1::QUERY_SESSION);
  hello.set_session(session.raw());
  hello.mutable_vm()->set_id(vm);
  FVMM_TRY(net::send_message(*stream, net::FrameType::kHello, hello, deadline), "ask about the session");
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(*stream, net::FrameType::kControl, message, deadline), "ask about the session");
  if (message.kind() != v1::PEER_ANSWER) return Error(Errc::kDataLoss, "the peer did not answer the question");
  return message.answer();
}

}  // namespace fvmm::migration
