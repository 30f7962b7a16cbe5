#include "migration/replication.h"

#include <fmt/format.h>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>

#include "base/check.h"
#include "migration/refusal.h"
#include "net/frame.h"

namespace fvmm::migration {

namespace {

const memory::Digest& zero_page_hash() {
  static const memory::Digest hash = [] {
    constexpr std::array<std::byte, kPageBytes> kZeros{};
    return memory::hash_page(kZeros);
  }();
  return hash;
}

}  // namespace

Replication::Replication(ReplicationOptions options, WithGuest with_guest, std::unique_ptr<Transport> transport,
                         std::unique_ptr<CaptureBuffer> buffer)
    : options_(std::move(options)),
      with_guest_(std::move(with_guest)),
      transport_(std::move(transport)),
      buffer_(std::move(buffer)),
      pacer_(options_.bandwidth_bytes_s) {}

Result<std::unique_ptr<Replication>> Replication::start(ReplicationOptions options, WithGuest with_guest,
                                                        std::unique_ptr<Transport> transport) {
  auto buffer = FVMM_TRY(CaptureBuffer::create(options.buffer_bytes));
  std::unique_ptr<Replication> made(
      new Replication(std::move(options), std::move(with_guest), std::move(transport), std::move(buffer)));
  FVMM_TRY(made->with_guest_([&](Guest& guest) { return made->begin(guest); }));
  made->buffer_->break_off();  // nothing is captured before the peer has answered
  made->capturing_ = std::thread([r = made.get()] { r->capture_loop(); });
  made->sending_ = std::thread([r = made.get()] { r->send_loop(); });
  return made;
}

Status Replication::begin(Guest& guest) {
  FVMM_TRY(guest.machine->dirty().harvest());
  guest.since_generation = guest.machine->dirty().add_reader();
  config_ = guest.config;
  base_ = guest.base;
  cpu_ = guest.machine->cpu();
  fencing_token_ = guest.fencing_token;
  start_over_ = true;
  if (!base_.id().empty()) sealed_ = FVMM_TRY(Id::from_bytes(base_.digest()), "digest of the template");
  sealed_instant_ = std::chrono::steady_clock::now();
  status_.set_vm(config_.name());
  status_.set_to(options_.peer);
  status_.set_template_(base_.name());
  status_.set_buffer_bytes_max(buffer_->bytes_max());
  status_.set_state("starting");
  return {};
}

Replication::~Replication() {
  stop();
}

void Replication::stop() {
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    stopping_ = true;
  }
  changed_.notify_all();
  pacer_.cancel();
  buffer_->break_off();
  {
    const std::lock_guard lock(stream_mutex_);
    if (stream_) stream_->cancel();
  }
  if (capturing_.joinable()) capturing_.join();
  if (sending_.joinable()) sending_.join();
  (void)with_guest_([](Guest& guest) {
    guest.since_generation.reset();
    return Status();
  });
  const std::lock_guard lock(mutex_);
  if (status_.state() != "fenced") status_.set_state("stopped");
}

v1::ReplicaStatus Replication::status() const {
  const std::lock_guard lock(mutex_);
  v1::ReplicaStatus now = status_;
  const BufferFigures figures = buffer_->figures();  // after status_: nothing is sent before it is captured
  const auto lag = std::chrono::steady_clock::now() - sealed_instant_;
  now.set_pages_captured(figures.pages_in);
  now.set_buffer_bytes(figures.bytes);
  now.set_buffer_waits(figures.waits);
  now.set_buffer_wait_ms(to_ms(figures.waited));
  now.set_lag_ms(to_ms(lag));
  now.set_lag_pages(dirty_pages_);
  for (const Point& point : in_flight_) now.set_lag_pages(now.lag_pages() + point.pages.count());
  now.set_lagging(is_lagging(options_.policy, lag));
  return now;
}

void Replication::set_state(std::string_view state, std::string detail) {
  const std::lock_guard lock(mutex_);
  status_.set_state(std::string(state));
  status_.set_detail(std::move(detail));
}

Status Replication::step(std::string_view name) {
  return options_.on_step ? options_.on_step(name) : Status{};
}

void Replication::send_loop() {
  ::pthread_setname_np(::pthread_self(), "replicate");
  std::chrono::milliseconds pause = kReconnectFirst;
  for (;;) {
    const std::uint64_t sealed_before = status().generation_sealed();
    const Status ended = session();
    const bool refused = !ended && ended.error().code() == Errc::kResourceExhausted;
    pause = status().generation_sealed() > sealed_before
                ? kReconnectFirst
                : std::min<std::chrono::milliseconds>(pause * 2, refused ? kRefusedLast : kReconnectLast);
    if (!ended) lose_link(ended.error(), pause);
    std::unique_lock lock(mutex_);
    if (stopping_ || status_.state() == "fenced") return;
    if (changed_.wait_for(lock, pause, [this] { return stopping_; })) return;
    status_.set_reconnects(status_.reconnects() + 1);
  }
}

// From now on captures fail at once and give their pages back; those of finished generations go with the next one.
void Replication::lose_link(const Error& error, std::chrono::milliseconds next_try) {
  {
    const std::lock_guard lock(mutex_);
    connected_ = false;
    if (!stopping_ && status_.state() != "fenced") {
      const bool refused = error.code() == Errc::kResourceExhausted;
      status_.set_state(refused ? "refused" : "reconnecting");
      status_.set_detail(refused ? fmt::format("{}; tried again every {:.1f} s", error.message(), to_ms(next_try) / 1e3)
                                 : error.message());
    }
  }
  buffer_->break_off();
  spdlog::warn("replication of {} to {}: {}", config_.name(), options_.peer, error.message());
}

v1::PeerHello Replication::hello() const {
  v1::PeerHello hello;
  hello.set_version(kPeerVersion);
  hello.set_purpose(v1::REPLICATE);
  hello.set_session(Id::random().raw());
  *hello.mutable_vm() = config_;
  *hello.mutable_template_() = base_;
  hello.set_fencing_token(fencing_token_);
  *hello.mutable_cpu() = cpu_;
  hello.set_from(options_.from);
  if (!options_.replication.none()) hello.set_replication(options_.replication.raw());
  hello.set_test_hook(options_.peer_test_hook);
  return hello;
}

Status Replication::session() {
  const Deadline wait = Deadline::after(kReplicaConnectWait);
  FVMM_TRY(step("connect"));
  auto stream = FVMM_TRY(transport_->connect(wait));
  {
    const std::lock_guard lock(stream_mutex_);
    stream_ = std::move(stream);
  }
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) return Error(Errc::kCancelled, "stopped");
  }
  FVMM_TRY(net::send_message(*stream_, net::FrameType::kHello, hello(), wait), "send Hello");
  v1::PeerMessage ready;
  FVMM_TRY(net::receive_message(*stream_, net::FrameType::kControl, ready, wait), "waiting for REPLICA_READY");
  if (ready.kind() == v1::PEER_FENCED) fence();
  if (ready.kind() != v1::PEER_REPLICA_READY) return refusal(ready, options_.peer);
  FVMM_TRY(agree(ready));
  hashes_.clear();  // of a generation that the last link did not live to see
  buffer_->open();
  {
    const std::lock_guard lock(mutex_);
    connected_ = true;
    status_.set_state("replicating");
    status_.set_detail("");
  }
  changed_.notify_all();
  return send_items();
}

// What the peer has sealed decides. A generation whose SEALED was lost on the way counts; what came after it goes
// again; a peer that has none of ours gets everything that differs from the template.
Status Replication::agree(const v1::PeerMessage& ready) {
  const std::lock_guard lock(mutex_);
  const auto theirs = Id::from_bytes(ready.generation().digest());
  const auto found = std::find_if(in_flight_.begin(), in_flight_.end(), [&](const Point& point) {
    return theirs && !point.digest.none() && point.digest == *theirs;
  });
  if (found != in_flight_.end()) {
    sealed_ = found->digest;
    sealed_instant_ = found->instant;
    status_.set_generation_held(found->number);
    status_.set_generation_sealed(found->number);
    std::for_each(in_flight_.begin(), found + 1, [this](const Point& point) { acknowledge(point); });
    in_flight_.erase(in_flight_.begin(), found + 1);
  } else if (status_.generation_sealed() == 0 || !theirs || *theirs != sealed_) {
    start_over_ = true;
    sealed_ = base_.id().empty() ? memory::Digest{} : FVMM_TRY(Id::from_bytes(base_.digest()));
  }
  for (const Point& point : in_flight_) {
    if (!lost_) lost_.emplace(point.pages.pages());
    lost_->merge(point.pages);
  }
  in_flight_.clear();
  next_number_ = std::max(next_number_, ready.generation().number() + 1);
  return {};
}

void Replication::acknowledge(const Point& point) {
  status_.set_pages_acknowledged(status_.pages_acknowledged() + point.pages.count());
}

Status Replication::send_items() {
  std::optional<PageSender> sender;
  for (;;) {
    auto item = buffer_->take(kSendPages, Deadline::after(kSenderLook));
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return Error(Errc::kCancelled, "stopped");
    }
    if (!item) {
      if (stream_->closed_by_peer()) return Error(Errc::kUnavailable, "the peer closed the connection");
      continue;
    }
    if (!sender) sender.emplace(*stream_, nullptr, &pacer_);
    if (const auto* const pages = std::get_if<std::vector<BufferedPage>>(&*item)) {
      const Status sent = send_pages(*sender, *pages);
      buffer_->release(*pages);
      FVMM_TRY(Status(sent), "send pages");
      continue;
    }
    FVMM_TRY(send_end(*sender, std::get<GenerationEnd>(*item)));
    sender.reset();  // frames are numbered from 0 in each generation
  }
}

Status Replication::send_pages(PageSender& sender, const std::vector<BufferedPage>& pages) {
  const Deadline wait = Deadline::after(kReplicaAnswerWait);
  for (const BufferedPage& page : pages) {
    const std::byte* const bytes = buffer_->bytes(page.slot);
    hashes_.emplace_back(page.page, memory::hash_page(std::span<const std::byte, kPageBytes>(bytes, kPageBytes)));
    FVMM_TRY(sender.add(page.page, bytes, wait));
  }
  FVMM_TRY(sender.flush(wait));
  const std::lock_guard lock(mutex_);
  status_.set_pages_sent(status_.pages_sent() + pages.size());
  return {};
}

// Over the last copy of each page, in ascending order.
memory::Digest Replication::digest_of(const memory::Digest& parent, std::uint64_t& pages) {
  std::stable_sort(hashes_.begin(), hashes_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  memory::DigestChain chain(parent, config_.memory_bytes());
  for (std::size_t i = 0; i < hashes_.size(); ++i) {
    if (i + 1 < hashes_.size() && hashes_[i + 1].first == hashes_[i].first) continue;
    if (parent.none() && hashes_[i].second == zero_page_hash()) continue;  // a base has no zero pages
    chain.add(hashes_[i].first, hashes_[i].second);
  }
  hashes_.clear();
  pages = chain.pages();
  return chain.finish();
}

Status Replication::send_end(PageSender& sender, const GenerationEnd& end) {
  const Deadline wait = Deadline::after(kReplicaAnswerWait);
  FVMM_TRY(step("end"));
  FVMM_TRY(sender.send_end(wait), "end of the pages");
  v1::PeerMessage message;
  message.set_kind(v1::PEER_GENERATION);
  *message.mutable_state() = end.state;
  v1::GenerationPoint& point = *message.mutable_generation();
  const memory::Digest parent = sealed_;  // written by this thread alone
  std::uint64_t pages = 0;
  const memory::Digest digest = digest_of(parent, pages);  // outside the lock: a pause may want it meanwhile
  {
    const std::lock_guard lock(mutex_);
    point.set_parent_digest(parent.raw());
    point.set_digest(digest.raw());
    point.set_number(end.number);
    point.set_pages(pages);
    point.set_realtime_ns(end.realtime_ns);
    FVMM_CHECK(!in_flight_.empty() && in_flight_.front().number == end.number, "generations go in order");
    in_flight_.front().digest = digest;
  }
  FVMM_TRY(step("generation"));
  FVMM_TRY(net::send_message(*stream_, net::FrameType::kControl, message, wait), "send GENERATION");
  {
    const std::lock_guard lock(mutex_);
    status_.set_generation_sent(end.number);
    status_.set_bytes_sent(status_.bytes_sent() + sender.counters().bytes);
  }
  FVMM_TRY(await(v1::PEER_GENERATION_HELD, end.number));
  FVMM_TRY(await(v1::PEER_GENERATION_SEALED, end.number));
  return step("sealed");
}

Status Replication::await(v1::PeerKind wanted, std::uint64_t number) {
  v1::PeerMessage message;
  FVMM_TRY(net::receive_message(*stream_, net::FrameType::kControl, message, Deadline::after(kReplicaAnswerWait)),
           v1::PeerKind_Name(wanted));
  if (message.kind() == v1::PEER_FENCED) fence();
  if (message.kind() != wanted || message.generation().number() != number) return refusal(message, options_.peer);
  const std::lock_guard lock(mutex_);
  if (wanted == v1::PEER_GENERATION_HELD) {
    status_.set_generation_held(number);
    return {};
  }
  Point& point = in_flight_.front();
  round_trip_ = std::chrono::steady_clock::now() - point.instant;
  sealed_ = point.digest;
  sealed_instant_ = point.instant;
  status_.set_generation_sealed(number);
  acknowledge(point);
  in_flight_.pop_front();
  changed_.notify_all();
  return {};
}

// The right to run has gone to the peer, whatever the guest does here: it is frozen before anything else, and does not
// wait for whoever has it in hand.
void Replication::fence() {
  Status frozen;
  while (options_.on_fenced && !(frozen = options_.on_fenced())) {
    spdlog::error("a fenced VM runs on, because {}; trying again", frozen.error().message());
    std::this_thread::sleep_for(kReconnectFirst);  // also when stopping: the guest must not run on
  }
  set_state("fenced", fmt::format("somebody has recovered this VM at {}; it no longer runs here", options_.peer));
  {
    const std::lock_guard lock(mutex_);
    connected_ = false;
  }
  buffer_->break_off();  // a capture under way lets go of the guest
}

}  // namespace fvmm::migration
