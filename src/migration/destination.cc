#include "migration/destination.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <future>

#include "base/scope_exit.h"
#include "migration/transport.h"
#include "net/frame.h"

namespace fvmm::migration {

DestinationSession::DestinationSession(v1::PeerHello hello, std::unique_ptr<net::Stream> control,
                                       Environment environment)
    : hello_(std::move(hello)),
      session_(Id::from_bytes(hello_.session()).value_or(Id{})),
      control_(std::move(control)),
      environment_(std::move(environment)),
      deadline_(Deadline::after(std::chrono::milliseconds(hello_.timeout_ms()))),
      phase_began_(std::chrono::steady_clock::now()) {}

DestinationSession::~DestinationSession() = default;

Result<std::unique_ptr<Guest>> DestinationSession::run() {
  const auto all = [&]() -> Status {
    FVMM_TRY(prepare());
    FVMM_TRY(collect_connections());
    FVMM_TRY(receive_all());
    FVMM_TRY(load());
    FVMM_TRY(wait_for_commit());
    return start();
  };
  Status status = all();
  if (!status) {
    refuse(status.error());
    return std::move(status.error());
  }
  settle();
  return std::move(guest_);
}

Status DestinationSession::step(std::string_view name) {
  if (cancelled_ && verdict_.value() != Verdict::Value::kCommitted) return Error(Errc::kCancelled, "cancelled");
  return environment_.on_step ? environment_.on_step(name) : Status{};
}

// Two threads may have moved the verdict, so an event out of place is an error here and not a broken promise.
Status DestinationSession::advance(DestinationEvent event) {
  const auto to = next(state_, event);
  if (!to)
    return Error(Errc::kInternal,
                 fmt::format("event {} in state {}", static_cast<int>(event), static_cast<int>(state_)));
  state_ = *to;
  return {};
}

Status DestinationSession::prepare() {
  FVMM_TRY(step("prepare"));
  if (session_.none() || hello_.connections() == 0 || hello_.connections() > kDataConnectionsQueued) {
    return Error(Errc::kInvalidArgument, "the Hello has no session id or a bad number of connections");
  }
  guest_ = FVMM_TRY(environment_.make_guest(hello_));
  phase_done("prepare");
  populate_expected();
  phase_done("populate");
  FVMM_TRY(step("may-start"));
  FVMM_TRY(write_record(v1::OUTCOME_OPEN), "record the session");
  FVMM_TRY(advance(DestinationEvent::kReady));
  phase_done("record");
  FVMM_TRY(step("ready"));
  return say(v1::PEER_READY);
}

// Copying a template's page at its first write costs more than receiving it: done here, it is not in the pause.
void DestinationSession::populate_expected() {
  memory::GuestMemory& ram = guest_->machine->memory();
  const std::uint64_t pages = ram.layout().pages();
  const int ranges = std::min(hello_.expected_size() / 2, static_cast<int>(kHintRangesMax));
  for (int i = 0; i < ranges; ++i) {
    const std::uint64_t first = hello_.expected(2 * i);
    const std::uint64_t count = hello_.expected(2 * i + 1);
    if (first >= pages || count > pages - first) return;  // the peer is confused; a hint is not worth a failure
    ram.populate({first, count});
  }
}

// A source that is gone makes no more of them: that is seen at its control connection, not waited out.
Result<DataConnection> DestinationSession::next_connection(const Deadline& deadline) {
  for (;;) {
    if (auto connection = connections_.receive(deadline.sooner(kControlLook))) return std::move(*connection);
    if (cancelled_) return Error(Errc::kCancelled, "cancelled");  // and the box is closed
    if (control_->closed_by_peer()) return Error(Errc::kUnavailable, "the source closed the session");
    if (deadline.passed()) return Error(Errc::kDeadlineExceeded, "the data connections did not come");
  }
}

Status DestinationSession::collect_connections() {
  const Deadline deadline = deadline_.sooner(environment_.waits.connections);
  {
    const std::lock_guard lock(data_mutex_);
    data_.resize(hello_.connections());
  }
  for (std::uint32_t i = 0; i < hello_.connections(); ++i) {
    DataConnection connection = FVMM_TRY(next_connection(deadline));
    const std::lock_guard lock(data_mutex_);
    if (connection.index >= data_.size() || data_[connection.index]) {
      return Error(Errc::kDataLoss, fmt::format("data connection {} is not due", connection.index));
    }
    data_[connection.index] = std::move(connection.stream);
  }
  pause_begins_.emplace();
  const bool fresh = guest_->base.id().empty();
  for (auto& stream : data_) {
    receivers_.push_back(std::make_unique<PageReceiver>(*stream, guest_->machine->memory(), fresh));
  }
  return {};
}

Status DestinationSession::add_connection(DataConnection connection) {
  if (!connections_.try_send(std::move(connection))) {
    return Error(Errc::kResourceExhausted, "too many data connections for one session");
  }
  return {};
}

// The first connection is received on this thread: with one connection no thread is woken inside the pause.
Status DestinationSession::receive_all() {
  FVMM_TRY(step("receive"));
  std::vector<std::future<Status>> others;
  for (std::size_t i = 1; i < receivers_.size(); ++i) {
    others.push_back(std::async(std::launch::async, [this, i] { return receivers_[i]->run(deadline_); }));
  }
  Status status = receivers_[0]->run(deadline_);
  if (!status) {
    for (auto& stream : data_) stream->cancel();  // the others shall not wait out the deadline
  }
  for (auto& other : others) {
    Status one = other.get();
    if (status) status = std::move(one);
  }
  FVMM_TRY(std::move(status), "receive pages");
  phase_began_ = std::chrono::steady_clock::now();
  return {};
}

Status DestinationSession::load() {
  FVMM_TRY(step("state"));
  state_message_ = FVMM_TRY(hear(v1::PEER_STATE, deadline_));
  if (static_cast<std::size_t>(state_message_.frames_sent_size()) != receivers_.size()) {
    return Error(Errc::kDataLoss, "STATE counts other connections than there are");
  }
  for (std::size_t i = 0; i < receivers_.size(); ++i) {
    const std::uint64_t sent = state_message_.frames_sent(static_cast<int>(i));
    if (sent != receivers_[i]->counters().frames) {
      return Error(Errc::kDataLoss, fmt::format("connection {}: {} frames sent, {} received", i, sent,
                                                receivers_[i]->counters().frames));
    }
    guest_->since_base->put_back(receivers_[i]->written());
  }
  note_way_back();
  FVMM_TRY(step("load"));
  FVMM_TRY(guest_->machine->load_state(state_message_.state()), "load state");
  FVMM_TRY(advance(DestinationEvent::kAllLoaded));
  phase_done("load");
  FVMM_TRY(step("prepared"));
  return say(v1::PEER_PREPARED);
}

// What arrived is what the source will seal, and nothing has been written here yet: the state is loaded after this.
void DestinationSession::note_way_back() {
  if (hello_.template_().id().empty() || hello_.from().empty()) return;
  if (!guest_->machine->dirty().ready()) return;  // tracking `scan`: nobody counts from here on
  guest_->way_back.emplace();
  guest_->way_back->generation = session_;
  guest_->way_back->peer = hello_.from();
  guest_->way_back->since = guest_->machine->dirty().add_reader();
  agrees_ = hello_.agrees_way_back();
  if (agrees_) guest_->way_back->agreed = WayBack::Agreed::kOpen;
}

std::unique_ptr<net::Stream> DestinationSession::take_way_back() {
  return agrees_ ? std::move(control_) : nullptr;
}

memory::Bitmap DestinationSession::arrived() const {
  memory::Bitmap pages(receivers_.front()->written().pages());
  for (const auto& receiver : receivers_) pages.merge(receiver->written());
  return pages;
}

Status DestinationSession::wait_for_commit() {
  FVMM_TRY(hear(v1::PEER_COMMIT, Deadline::after(environment_.waits.commit)), "waiting for COMMIT");
  FVMM_TRY(step("commit"));
  if (!verdict_.commit()) return Error(Errc::kAborted, "COMMIT came after the session was refused");
  return advance(DestinationEvent::kCommit);
}

Status DestinationSession::start() {
  phase_began_ = std::chrono::steady_clock::now();
  guest_->fencing_token = hello_.fencing_token();
  FVMM_TRY(step("run"));
  FVMM_TRY(guest_->machine->take_disks());
  if (!state_message_.paused()) FVMM_TRY(guest_->machine->resume(), "run");
  start_ended(Start::kRunning);
  FVMM_TRY(advance(DestinationEvent::kRunning));
  phase_done("run");
  return {};
}

// The guest runs: nothing here may fail it any more.
void DestinationSession::settle() {
  pause_begins_.reset();
  (void)step("started");
  const Status told = say(v1::PEER_STARTED);
  if (!told) spdlog::warn("STARTED could not be sent ({}); the source will ask", told.error().message());
  if (environment_.on_started) environment_.on_started(*guest_);
  const Status recorded =
      write_last_record([this] { return write_record(v1::OUTCOME_STARTED); }, environment_.waits.record);
  if (!recorded) spdlog::error("record of the started session: {}", recorded.error().message());
  const auto settled = hear(v1::PEER_SETTLED, Deadline::after(environment_.waits.settled));
  if (!settled) spdlog::warn("the source did not settle the session: {}", settled.error().message());
}

// Once READY was said the refusal must be durable before it is spoken: the source takes it as the right to run again.
void DestinationSession::refuse(const Error& error) {
  spdlog::warn("incoming {} refused: {}", hello_.vm().name(), error.message());
  const ScopeExit close([this] { close_data(); });  // after the reason was said
  v1::PeerMessage message;
  message.set_code(static_cast<std::uint32_t>(error.code()));
  message.set_reason(error.message());
  if (state_ == DestinationState::kPreparing) {
    guest_.reset();  // this object may live on, for questions; the replica shall not
    state_ = DestinationState::kGone;
    message.set_kind(v1::PEER_REJECTED);
  } else {
    if (state_ != DestinationState::kStarting) (void)verdict_.refuse();
    guest_.reset();  // nothing is left that could run
    if (state_ == DestinationState::kStarting) start_ended(Start::kFailed);
    const Status durable = write_record(v1::OUTCOME_REFUSED);
    if (!durable) {
      spdlog::error("the refusal could not be made durable ({}): it is tried again when the source asks",
                    durable.error().message());
      control_->cancel();  // so that the source stops waiting for an answer here
      return;
    }
    state_ = DestinationState::kRefused;
    message.set_kind(v1::PEER_REFUSED_DURABLY);
  }
  (void)net::send_message(*control_, net::FrameType::kControl, message, Deadline::after(std::chrono::seconds(1)));
}

// This object may live on for questions, and a source whose pages nobody reads would wait for its deadline, guest
// paused.
void DestinationSession::close_data() {
  connections_.close();
  while (connections_.try_receive()) continue;
  cancel_data();
}

void DestinationSession::start_ended(Start how) {
  {
    const std::lock_guard lock(start_mutex_);
    start_ = how;
  }
  start_changed_.notify_all();
}

v1::SessionAnswer DestinationSession::answer() {
  if (verdict_.refuse()) {
    v1::SessionAnswer answer = refused_answer();
    cancel();  // the session's thread finds the verdict and cleans up
    return answer;
  }
  Start how = Start::kOpen;
  {
    std::unique_lock lock(start_mutex_);
    start_changed_.wait_until(lock, Deadline::after(environment_.waits.start).at(),
                              [this] { return start_ != Start::kOpen; });
    how = start_;
  }
  if (how == Start::kFailed) return refused_answer();
  v1::SessionAnswer answer;
  answer.set_outcome(how == Start::kRunning ? "started" : "unknown");
  answer.set_detail(how == Start::kRunning ? "the guest runs here"
                                           : "COMMIT was accepted, the start has not ended yet");
  return answer;
}

// Only where no later COMMIT can be accepted and nothing runs.
v1::SessionAnswer DestinationSession::refused_answer() {
  v1::SessionAnswer answer;
  const Status durable = write_record(v1::OUTCOME_REFUSED);
  answer.set_outcome(durable ? "refused" : "unknown");
  answer.set_detail(durable ? "the destination can never start it in this session" : durable.error().message());
  return answer;
}

void DestinationSession::cancel() {
  cancelled_ = true;
  if (verdict_.value() == Verdict::Value::kCommitted) return;
  control_->cancel();
  connections_.close();
  cancel_data();
}

void DestinationSession::cancel_data() {
  const std::lock_guard lock(data_mutex_);
  for (auto& stream : data_) {
    if (stream) stream->cancel();
  }
}

Status DestinationSession::write_record(v1::SessionOutcome outcome) {
  v1::SessionRecord record;
  record.set_session(hello_.session());
  record.set_vm(hello_.vm().id());
  record.set_role(v1::ROLE_MAY_START);
  record.set_outcome(outcome);
  record.set_peer(hello_.from());
  record.set_boot_id(environment_.boot_id);
  record.set_fencing_token(hello_.fencing_token());
  const std::lock_guard lock(record_mutex_);
  if (outcome == v1::OUTCOME_OPEN && verdict_.value() == Verdict::Value::kRefused) {
    return Error(Errc::kAborted, "the session was refused meanwhile");  // a refusal that was told is never taken back
  }
  return environment_.journal->write(record);
}

Status DestinationSession::say(v1::PeerKind kind) {
  v1::PeerMessage message;
  message.set_kind(kind);
  for (const v1::Timing& timing : timings_) *message.add_timings() = timing;
  timings_.clear();
  message.set_agrees_way_back(kind == v1::PEER_STARTED && agrees_);
  return net::send_message(*control_, net::FrameType::kControl, message, Deadline::after(environment_.waits.commit));
}

Result<v1::PeerMessage> DestinationSession::hear(v1::PeerKind wanted, const Deadline& deadline) {
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(*control_, net::FrameType::kControl, message, deadline));
  if (message.kind() == v1::PEER_ABORT) return Error(Errc::kAborted, "the source gave up: " + message.reason());
  if (message.kind() != wanted) {
    return Error(Errc::kDataLoss, fmt::format("message {} where {} was due", v1::PeerKind_Name(message.kind()),
                                              v1::PeerKind_Name(wanted)));
  }
  return message;
}

void DestinationSession::phase_done(std::string_view name) {
  const auto now = std::chrono::steady_clock::now();
  v1::Timing timing;
  timing.set_name(std::string(name));
  timing.set_ms(to_ms(now - phase_began_));
  timings_.push_back(std::move(timing));
  phase_began_ = now;
}

}  // namespace fvmm::migration
