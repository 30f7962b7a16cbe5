#include "daemon/peer_listener.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/scope_exit.h"
#include "memory/template_format.h"
#include "migration/refusal.h"
#include "migration/template_push.h"
#include "migration/transport.h"
#include "net/frame.h"

namespace fvmm::daemon {
namespace {

constexpr std::chrono::hours kAcceptWait{1};
constexpr std::chrono::seconds kAnswerWait{5};
constexpr std::chrono::milliseconds kAcceptPause{100};  // after an accept error such as "out of descriptors"

void reject(net::Channel& channel, const Error& error) {
  const v1::PeerMessage message = migration::to_message(v1::PEER_REJECTED, error);
  const Status sent = net::send_message(channel, net::FrameType::kControl, message, Deadline::after(kAnswerWait));
  if (!sent) spdlog::debug("the refusal did not reach the peer: {}", sent.error().message());
}

}  // namespace

Result<std::unique_ptr<PeerListener>> PeerListener::open(const net::Endpoint& at, Context context) {
  net::Listener listener = FVMM_TRY(net::Listener::open(at), "peer listener");
  return std::unique_ptr<PeerListener>(new PeerListener(std::move(listener), std::move(context)));
}

PeerListener::PeerListener(net::Listener listener, Context context)
    : listener_(std::move(listener)), bound_(listener_.bound()), context_(std::move(context)) {}

PeerListener::~PeerListener() {
  context_.stop.fire();
  join();
}

void PeerListener::start() {
  accepting_ = std::thread([this] { accept_loop(); });
}

void PeerListener::join() {
  if (accepting_.joinable()) accepting_.join();
  for (Handler& handler : handlers_) handler.thread.join();
  handlers_.clear();
}

void PeerListener::accept_loop() {
  // shutdown(2) of a listening socket wakes accept(2) with an error.
  const StopSignal::Guard guard(context_.stop, [this] { ::shutdown(listener_.fd(), SHUT_RDWR); });
  while (!context_.stop.fired()) {
    auto socket = listener_.accept(Deadline::after(kAcceptWait));
    std::erase_if(handlers_, [](Handler& handler) {
      if (!handler.done) return false;
      handler.thread.join();
      return true;
    });
    if (!socket) {
      if (context_.stop.fired() || socket.error().code() == Errc::kDeadlineExceeded) continue;
      spdlog::warn("peer listener: {}", socket.error().message());
      std::this_thread::sleep_for(kAcceptPause);
      continue;
    }
    if (pending_ >= kPendingPeersMax) {
      spdlog::warn("peer listener: {} connections wait for their Hello, the limit; closing one more", kPendingPeersMax);
      continue;
    }
    ++pending_;
    Handler& handler = handlers_.emplace_back();
    handler.thread = std::thread([this, &done = handler.done, fd = std::move(*socket)]() mutable {
      serve(std::move(fd));
      done = true;
    });
  }
}

void PeerListener::serve(UniqueFd socket) {
  ScopeExit waiting([this] { --pending_; });
  auto channel = net::Channel::adopt(std::move(socket));
  if (!channel) {
    spdlog::warn("peer connection: {}", channel.error().message());
    return;
  }
  net::Channel& raw = **channel;
  v1::PeerHello hello;
  Status got;
  {
    const StopSignal::Guard guard(context_.stop, [&raw] { raw.cancel(); });
    got = net::receive_message(raw, net::FrameType::kHello, hello, Deadline::after(kHelloWait));
  }
  if (!got) {
    spdlog::info("peer connection without a Hello: {}", got.error().message());
    return;
  }
  if (hello.version() != migration::kPeerVersion) {
    reject(raw, Error(Errc::kFailedPrecondition,
                      fmt::format("peer version {} is not ours, {}: run the same fvmmd on both hosts", hello.version(),
                                  migration::kPeerVersion)));
    return;
  }
  // Migrations, pushes and replications have limits of their own; data connections and questions are short and stay
  // counted.
  const bool bounded_elsewhere =
      hello.purpose() == v1::MIGRATE || hello.purpose() == v1::PUSH_TEMPLATE || hello.purpose() == v1::REPLICATE;
  if (bounded_elsewhere) {
    waiting.dismiss();
    --pending_;
  }
  dispatch(std::move(*channel), hello);
}

void PeerListener::dispatch(std::unique_ptr<net::Channel> channel, const v1::PeerHello& hello) {
  Status status;
  switch (hello.purpose()) {
    case v1::MIGRATE:
      status = migrate_in(channel, hello);
      break;
    case v1::DATA:
      status = add_data(channel, hello);
      break;
    case v1::PUSH_TEMPLATE:
      status = receive_push(*channel, hello);
      break;
    case v1::QUERY_SESSION:
      status = answer_query(*channel, hello);
      break;
    case v1::REPLICATE:
      status = replicate_in(*channel, hello);
      break;
    case v1::QUERY_VM:
      status = answer_vm_query(*channel, hello);
      break;
    case v1::FORGET_REPLICA:
      status = forget_replica(*channel, hello);
      break;
    case v1::CHECK_REPLICA:
      status = answer_replica_check(*channel, hello);
      break;
    default:
      status = Error(Errc::kInvalidArgument, fmt::format("unknown purpose {}", static_cast<int>(hello.purpose())));
  }
  if (status) return;
  spdlog::warn("peer: {} refused: {}", v1::HelloPurpose_Name(hello.purpose()), status.error().message());
  if (channel) reject(*channel, status.error());  // null: the worker has the connection and has said it
}

Status PeerListener::add_data(std::unique_ptr<net::Channel>& channel, const v1::PeerHello& hello) {
  const Id session = FVMM_TRY(Id::from_bytes(hello.session()), "session");
  const auto worker = FVMM_TRY(context_.sessions.wait_worker(session, Deadline::after(kDataWait)));
  v1::WorkerAddConnectionRequest request;
  request.set_session(hello.session());
  request.set_index(hello.index());
  const UniqueFd connection = std::move(*channel).release();
  channel.reset();
  return worker->client()->add_connection(request, connection.get(), Deadline::after(kDataWait));
}

Status PeerListener::answer_query(net::Channel& channel, const v1::PeerHello& hello) {
  const Id session = FVMM_TRY(Id::from_bytes(hello.session()), "session");
  v1::PeerMessage message;
  message.set_kind(v1::PEER_ANSWER);
  *message.mutable_answer() = context_.sessions.answer(session, Deadline::after(kAnswerWait));
  spdlog::info("a peer asks about session {}: {}", session.hex(), message.answer().outcome());
  return net::send_message(channel, net::FrameType::kControl, message, Deadline::after(kAnswerWait));
}

Status PeerListener::receive_push(net::Channel& channel, const v1::PeerHello& hello) {
  const ScopeExit leave([this] { --pushes_; });
  if (++pushes_ > kPushesMax) {
    return Error(Errc::kResourceExhausted, fmt::format("{} templates are being received, the limit", kPushesMax));
  }
  FVMM_TRY(memory::check_stored_name(hello.template_().name()));
  const StopSignal::Guard guard(context_.stop, [&channel] { channel.cancel(); });
  const Deadline deadline =
      hello.timeout_ms() == 0 ? Deadline::after(kIncomingWaitMax)
                              : Deadline::after(std::chrono::milliseconds(hello.timeout_ms())).sooner(kIncomingWaitMax);
  const Status received = migration::receive_template(channel, hello, context_.store, deadline);
  if (received) {
    spdlog::info("template {} is here", hello.template_().name());
  } else {
    spdlog::warn("template {}: {}", hello.template_().name(), received.error().message());  // the peer was told
  }
  return {};
}

}  // namespace fvmm::daemon
