// SimWayBackWorld: what the workers do around the sessions and the talk. Part of support/sim_way_back_world.h.
#pragma once

#include <fmt/format.h>

#include "support/sim_way_back_world.h"

namespace fvmm::testing {

inline SimWayBackWorld::SimWayBackWorld(std::uint64_t seed, SimWayBackPlan plan,
                                        const std::array<SimWayBackDisk, 2>& disks)
    : seed_(seed), plan_(std::move(plan)) {
  config_.set_id(std::string(16, 'v'));
  config_.set_name("web1");
  config_.set_memory_bytes(kSimRamBytes);
  config_.set_vcpus(1);
  for (std::size_t i = 0; i < 2; ++i) {
    Host& here = hosts_.at(i);
    here.number = static_cast<int>(i) + 1;
    here.disk = disks.at(i);
    here.disk.files->alive = [this, &here] { disk_moment(here); };
    if (plan_.plant == SimPlant::kSealNotDurable) {
      here.disk.files->sync_lies = [store = here.store()](const std::string& path) { return path == store; };
    }
  }
}

inline SimWayBackWorld::~SimWayBackWorld() = default;

inline std::unique_ptr<migration::Guest> SimWayBackWorld::make_guest(Host& host, memory::OpenTemplate base,
                                                                     SimPlant plant) {
  SimPlan plan;
  plan.pages_per_step = plan_.pages_per_step;
  plan.pages_written = plan_.pages_written;
  plan.plant = plant;
  auto machine = std::make_unique<SimMachine>(seed_, plan, SimMachineFaults{},
                                              SimMachine::Hooks{.alive = [this] { alive(); },
                                                                .starting = [this](SimMachine& one) { on_start(one); },
                                                                .gone =
                                                                    [&host](SimMachine& one) {
                                                                      if (host.machine == &one) host.machine = nullptr;
                                                                    }});
  FVMM_CHECK(machine->memory().map_template(base.image()).ok(), "the template is mapped");
  auto guest = guest_around(config_, migration::to_ref(base.info()), std::move(machine));
  guest->pin = std::move(base);
  host.machine = &sim_machine(*guest);
  return guest;
}

inline void SimWayBackWorld::start_guest() {
  Host& here = host(1);
  here.guest = make_guest(here, *memory::OpenTemplate::open(here.store() / "base"), SimPlant::kNone);
  here.machine->start();
  for (unsigned i = 0; i < plan_.steps_before; ++i) here.machine->step();
}

/// Worker::migrate_guest: by the way back where that is agreed, else, or when the peer does not have it, against the
/// template.
inline void SimWayBackWorld::leave() {
  const Host& here = *trip_.from;
  migration::SourceOptions options;
  options.mode = plan_.mode;
  options.peer = sim_way_back_peer(trip_.to->number);
  options.from = sim_way_back_peer(here.number);
  options.connections = plan_.connections;
  options.max_downtime = std::chrono::seconds(1);
  options.by_way_back = migration::may_go_by_way_back(*here.guest, options.peer);
  const bool agreed = options.by_way_back;
  v1::MigrateResult result = migrate(options);
  const bool not_there = result.code() == static_cast<std::uint32_t>(Errc::kNotFound) ||
                         result.code() == static_cast<std::uint32_t>(Errc::kFailedPrecondition);
  expect(!agreed || !not_there, "the peer agreed, and does not have it: " + result.error());
  trip_.result = result.result();
  reason_ = result.error();
}

inline v1::MigrateResult SimWayBackWorld::migrate(migration::SourceOptions options) {
  Host& here = *trip_.from;
  const bool by_way_back = options.by_way_back;
  trace(here.number, by_way_back ? "leaves, by the way back" : "leaves, against the template");
  migration::Transport& network = *this;
  migration::SourceSession session(*here.guest, std::move(options), network, journal_);
  v1::MigrateResult result = session.run();
  alive();
  if (session.state() != migration::SourceState::kDone) return result;
  trip_.talking = true;
  keep({session.id(), session.final_state(), session.take_way_back(), by_way_back, session.base_digest()});
  return result;
}

/// Worker::seal_way_back, and what fvmmd does after it.
inline void SimWayBackWorld::keep(migration::Departed departed) {
  const Host& here = *trip_.from;
  if (trip_.disturbed) {
    SimFiles& files = *here.disk.files;
    files.full_from = plan_.full_from == 0 ? 0 : files.steps() + plan_.full_from;
    files.full_to = files.steps() + plan_.full_to;
    if (plan_.torn) tear(departed);
  }
  auto store = memory::TemplateStore::open(here.store());
  const auto older = store ? migration::generations_of(*store, config_.id(), migration::way_back_line(config_),
                                                       migration::kAllGenerations)
                           : std::vector<memory::TemplateInfo>{};
  const auto sealed = plan_.plant == SimPlant::kCompareSkipped
                          ? keep_unseen(*here.guest, departed)
                          : migration::seal_way_back(*here.guest, departed, here.store());
  trace(here.number, sealed ? "keeps " + sealed->name : "keeps nothing: " + sealed.error().message());
  if (!sealed) {
    trip_.refused = memory::generation_name(migration::way_back_line(config_), here.guest->fencing_token);
    return;
  }
  if (store) migration::remove_generations(*store, older);
}

/// A planted fault.
inline Result<memory::TemplateInfo> SimWayBackWorld::keep_unseen(const migration::Guest& guest,
                                                                 migration::Departed& departed) {
  const std::unique_ptr<net::Stream> stream = std::move(departed.way_back);
  auto sealed = migration::seal_way_back(guest, departed, trip_.from->store());
  if (!stream || !sealed) return sealed;
  v1::PeerMessage message;
  message.set_kind(v1::PEER_WAY_BACK_KEPT);
  message.mutable_generation()->set_digest(sealed->digest.raw());
  (void)net::send_message(*stream, net::FrameType::kControl, message, Deadline::after(std::chrono::seconds(5)));
  return sealed;
}

/// One byte of a page that travelled.
inline void SimWayBackWorld::tear(const migration::Departed& departed) {
  const migration::Guest& guest = *trip_.from->guest;
  const auto& sent = departed.by_way_back ? guest.way_back->since : guest.since_base;
  const auto ranges = sent->pending().ranges(1);
  if (ranges.empty()) return;
  const memory::PageIndex page = ranges[world().random() % ranges.size()].first;
  trace(trip_.from->number, fmt::format("page {} is torn", page));
  guest.machine->memory().pages_for_load({page, 1})[world().random() % kPageBytes] ^= std::byte{1};
}

inline Result<std::unique_ptr<net::Stream>> SimWayBackWorld::connect(const Deadline& deadline) {
  (void)deadline;
  alive();
  const auto link = std::make_shared<SimLink>();
  link->hosts = {trip_.from->number, trip_.to->number};
  for (std::size_t way = 0; way < 2; ++way) {
    SimScript& script = link->directions.at(way).script;
    if (trip_.disturbed && links_.empty()) script = plan_.control.at(way);
    script.latency = plan_.latency;
  }
  links_.push_back(link);
  auto theirs = std::make_shared<std::unique_ptr<net::Stream>>(
      std::make_unique<SimStream>(link, 1, [this] { alive(); }));  // shared: std::function is copied
  spawn(trip_.to->number, [this, theirs] { serve(std::move(*theirs)); });
  return std::unique_ptr<net::Stream>(std::make_unique<SimStream>(link, 0, [this] { alive(); }));
}

inline void SimWayBackWorld::serve(std::unique_ptr<net::Stream> stream) {
  v1::PeerHello hello;
  const Deadline wait = Deadline::after(std::chrono::seconds(20));
  if (!net::receive_message(*stream, net::FrameType::kHello, hello, wait)) return;
  if (hello.purpose() == v1::MIGRATE) return migrate_in(std::move(stream), hello);
  const auto session = trip_.destination;
  if (!session || session->id().raw() != hello.session()) return;
  if (hello.purpose() == v1::DATA) {
    (void)session->add_connection({hello.index(), std::move(stream)});
    return;
  }
  v1::PeerMessage message;
  message.set_kind(v1::PEER_ANSWER);
  *message.mutable_answer() = session->answer();
  (void)net::send_message(*stream, net::FrameType::kControl, message, wait);
}

inline void SimWayBackWorld::migrate_in(std::unique_ptr<net::Stream> stream, const v1::PeerHello& hello) {
  migration::DestinationSession::Environment environment;
  environment.make_guest = [this](const v1::PeerHello& incoming) { return make_replica(incoming); };
  environment.journal = &journal_;
  environment.boot_id = "peer-boot";
  const auto session =
      std::make_shared<migration::DestinationSession>(hello, std::move(stream), std::move(environment));
  trip_.destination = session;
  auto guest = session->run();
  alive();
  if (!guest) return trace(trip_.to->number, guest.error().message());
  trip_.to->guest = std::move(*guest);
  agree(*session);
}

/// Worker::make_replica. Of an older peer's generation only the id is known.
inline Result<std::unique_ptr<migration::Guest>> SimWayBackWorld::make_replica(const v1::PeerHello& hello) {
  alive();
  const auto store = FVMM_TRY(memory::TemplateStore::open(trip_.to->store()));
  const auto info =
      FVMM_TRY(store.find(FVMM_TRY(Id::from_bytes(hello.template_().id())),
                          FVMM_TRY(Id::from_bytes(hello.template_().digest()), "an agreed generation has a digest")));
  return make_guest(*trip_.to, FVMM_TRY(memory::OpenTemplate::open(info.directory)), plan_.plant);
}

/// Worker::agree_on_way_back.
inline void SimWayBackWorld::agree(migration::DestinationSession& session) {
  const std::unique_ptr<net::Stream> stream = session.take_way_back();
  if (!stream) return;
  const SimTime began = world().now();
  trip_.busy_until = trip_.disturbed ? began + plan_.busy_for : 0;
  const Status agreed = migration::agree_on_way_back(
      *stream, migration::ArrivedPages(session.arrived(), session.base_digest(), kSimRamBytes),
      [this](const std::string&, const auto& work) { return when_guest_rests(work); });
  alive();
  trace(trip_.to->number, agreed ? "has agreed" : "has not agreed: " + agreed.error().message());
  const auto took = std::chrono::nanoseconds(world().now() - began);
  expect(took < migration::kWayBackKeptWait + 2 * migration::kWayBackGuestWait + std::chrono::seconds(20),
         "the talk takes longer than its waits");
}

/// Worker::when_guest_rests.
inline Status SimWayBackWorld::when_guest_rests(const std::function<Status(migration::Guest&)>& work) {
  const Deadline limit = Deadline::after(migration::kWayBackGuestWait);
  for (;; std::this_thread::sleep_for(std::chrono::milliseconds(500))) {
    alive();
    if (world().now() >= trip_.busy_until) return work(*trip_.to->guest);
    if (limit.passed()) return Error(Errc::kFailedPrecondition, "the VM is busy");
  }
}

}  // namespace fvmm::testing
