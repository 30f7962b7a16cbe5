// SimDaemonWorld: connections between the hosts, and what fvmmd does with them. Part of support/sim_daemon_world.h.
#pragma once

#include "daemon/incoming_vm.h"
#include "net/frame.h"
#include "support/sim_daemon_worker.h"

namespace fvmm::testing {

inline Result<std::unique_ptr<net::Stream>> SimDaemonWorld::connect(int to, const Deadline& deadline) {
  alive();
  const auto number = static_cast<unsigned>(links_.size());
  const bool unreachable = !healed_ && number >= plan_.unreachable_from && number < plan_.unreachable_to;
  if (unreachable || !up_.at(to) || !fvmmds_.at(to)) {
    links_.emplace_back();
    const bool refused = up_.at(to) && (!unreachable || world().chance(2));  // or nobody answers at all
    const SimTime limit = std::chrono::nanoseconds(deadline.at().time_since_epoch()).count();
    if (!refused) world().block(this, limit);
    alive();
    return Error(refused ? Errc::kUnavailable : Errc::kDeadlineExceeded, "sim: connect");
  }
  const auto link = std::make_shared<SimLink>();
  link->hosts = {sim_self->host, to + 2};
  if (number < plan_.links.size() && !healed_) {
    for (std::size_t way = 0; way < 2; ++way) link->directions.at(way).script = plan_.links.at(number).at(way);
  }
  links_.push_back(link);
  auto theirs = std::make_shared<std::unique_ptr<net::Stream>>(
      std::make_unique<SimStream>(link, 1, [this] { alive(); }));  // shared: std::function is copied
  spawn(to + 2, [this, to, link, theirs] { serve(to, link, std::move(*theirs)); });
  return std::unique_ptr<net::Stream>(std::make_unique<SimStream>(link, 0, [this] { alive(); }));
}

/// PeerListener::serve() and dispatch().
inline void SimDaemonWorld::serve(int host, const std::shared_ptr<SimLink>& link, std::unique_ptr<net::Stream> stream) {
  const auto fvmmd = fvmmds_.at(host);
  v1::PeerHello hello;
  const Deadline wait = Deadline::after(std::chrono::seconds(20));
  if (!fvmmd || !net::receive_message(*stream, net::FrameType::kHello, hello, wait)) return;
  const Id session = *Id::from_bytes(hello.session());
  if (hello.purpose() == v1::MIGRATE) {
    const Status ended = migrate_in(*fvmmd, hello, link, stream);
    if (ended || !stream) return;
    trace(host, "rejects: " + ended.error().message());
    v1::PeerMessage message;
    message.set_kind(v1::PEER_REJECTED);
    (void)net::send_message(*stream, net::FrameType::kControl, message, Deadline::after(std::chrono::seconds(1)));
    return;
  }
  if (hello.purpose() == v1::DATA) {
    const auto process = fvmmd->sessions->wait_worker(session, Deadline::after(std::chrono::seconds(5)));
    if (!process) return;
    SimWorker& worker = static_cast<SimWorkerProcess&>(**process).worker();
    const auto coming = worker.destination;
    if (worker.dead || !coming || coming->id() != session) return;
    link->hosts[1] = host;  // handed to the worker
    (void)coming->add_connection({hello.index(), std::move(stream)});
    return;
  }
  v1::PeerMessage message;
  message.set_kind(v1::PEER_ANSWER);
  *message.mutable_answer() = fvmmd->sessions->answer(session, Deadline::after(std::chrono::seconds(5)));
  if (host == 2) told(message.answer().outcome());
  (void)net::send_message(*stream, net::FrameType::kControl, message, wait);
}

/// PeerListener::migrate_in(), but for the template, the pool and the admission by memory and disk.
inline Status SimDaemonWorld::migrate_in(SimDaemon& fvmmd, const v1::PeerHello& hello,
                                         const std::shared_ptr<SimLink>& link, std::unique_ptr<net::Stream>& stream) {
  auto admitted = FVMM_TRY(fvmmd.sessions->begin(*Id::from_bytes(hello.session())));
  const v1::VmRecord record = daemon::incoming_record(hello);
  daemon::Claim claim = FVMM_TRY(daemon::claim_incoming(*fvmmd.registry, hello, record, false));
  FVMM_TRY(claim.begin_incoming(record));
  const auto worker = new_worker(2);
  const auto process = std::make_shared<SimWorkerProcess>(*this, worker);
  claim.attach(process, v1::WorkerInfo(), 0);
  admitted.assign(process);
  link->hosts[1] = 2;  // handed to the worker
  Status received;
  try {
    const SimInWorker here(*worker);
    received = come_in(*worker, hello, std::move(stream));
  } catch (const SimKilled&) {
    received = Error(Errc::kUnavailable, "sim: the worker is gone");
  }
  alive();
  claim.note(worker->info);
  const Status settled = daemon::settle_incoming(
      claim, process, received, [&fvmmd](const Id& id, auto one) { fvmmd.supervisor->watch(id, std::move(one)); });
  if (!settled) trace(2, "what came in is not recorded: " + settled.error().message());
  return {};
}

/// daemon::ask_peer().
inline Result<v1::SessionAnswer> SimDaemonWorld::ask(int host, const v1::SessionRecord& session) {
  class ToPeer final : public migration::Transport {
   public:
    ToPeer(SimDaemonWorld& world, int to) : world_(world), to_(to) {}
    Result<std::unique_ptr<net::Stream>> connect(const Deadline& deadline) override {
      return world_.connect(to_, deadline);
    }

   private:
    SimDaemonWorld& world_;
    const int to_;
  };
  ToPeer transport(*this, 3 - host);
  return migration::ask_session(transport, *Id::from_bytes(session.session()), session.vm(),
                                Deadline::after(daemon::kAskPeerWait));
}

}  // namespace fvmm::testing
