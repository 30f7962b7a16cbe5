// SimWorld: what fvmmd and its workers do around the sessions. Part of support/sim_world.h.
#pragma once

#include "support/sim_world.h"

namespace fvmm::testing {

inline SimWorld::SimWorld(std::uint64_t seed, SimPlan plan) : seed_(seed), plan_(std::move(plan)) {
  source_journal_ = std::make_shared<SimJournal>(source_.disk, [this] { alive(); });
  destination_journal_ = std::make_shared<SimJournal>(destination_.disk, [this] { alive(); });
  for (SimHost* one : {&source_, &destination_}) {
    one->disk.full_from = plan_.full_from.at(one->number);
    one->disk.full_to = plan_.full_to.at(one->number);
    one->disk.plant.refusal_not_durable = plan_.plant == SimPlant::kRefusalNotDurable;
  }
  v1::VmConfig config;
  config.set_id(std::string(16, 'v'));
  config.set_name("web1");
  v1::TemplateRef base;
  if (plan_.on_template) base.set_id(std::string(16, 't'));
  source_.guest = make_guest(source_, config, base, {.pause = plan_.pause_fails, .save = plan_.save_fails});
  source_.machine->start();
  for (unsigned i = 0; i < plan_.steps_before; ++i) source_.machine->step();
}

inline SimWorld::~SimWorld() = default;

inline std::unique_ptr<migration::Guest> SimWorld::make_guest(SimHost& host, const v1::VmConfig& config,
                                                              const v1::TemplateRef& base, SimMachineFaults faults) {
  auto made = std::make_unique<SimMachine>(
      seed_, plan_, faults,
      SimMachine::Hooks{.alive = [this] { alive(); },
                        .starting = [this, &host](SimMachine& machine) { on_start(host, machine); },
                        .gone =
                            [&host](SimMachine& machine) {
                              if (host.machine == &machine) host.machine = nullptr;
                            }});
  auto guest = guest_around(config, base, std::move(made));
  host.machine = &sim_machine(*guest);
  return guest;
}

inline Result<std::unique_ptr<net::Stream>> SimWorld::connect(const Deadline& deadline) {
  alive();
  const auto number = static_cast<unsigned>(links_.size());
  const bool unreachable = !healed_ && number >= plan_.unreachable_from && number < plan_.unreachable_to;
  if (unreachable || !destination_.up) {
    links_.emplace_back();
    const bool refused = unreachable && world().chance(2);  // or nobody answers at all
    const SimTime limit = std::chrono::nanoseconds(deadline.at().time_since_epoch()).count();
    if (!refused) world().block(this, limit);
    alive();
    return Error(refused ? Errc::kUnavailable : Errc::kDeadlineExceeded, "sim: connect");
  }
  const auto link = std::make_shared<SimLink>();
  link->hosts = {sim_self->host, 2};
  if (number < plan_.links.size() && !healed_) {
    for (int way = 0; way < 2; ++way) link->directions.at(way).script = plan_.links.at(number).at(way);
  }
  links_.push_back(link);
  auto theirs = std::make_shared<std::unique_ptr<net::Stream>>(
      std::make_unique<SimStream>(link, 1, [this] { alive(); }));  // shared: std::function is copied
  spawn(2, [this, theirs] { serve(std::move(*theirs)); });
  return std::unique_ptr<net::Stream>(std::make_unique<SimStream>(link, 0, [this] { alive(); }));
}

inline void SimWorld::migrate() {
  migration::SourceOptions options;
  options.mode = plan_.mode;
  options.peer = "peer:7000";
  options.from = "source:7000";
  options.connections = plan_.connections;
  options.max_downtime = plan_.max_downtime;
  options.timeout = plan_.timeout;
  options.bandwidth_bytes_s = plan_.bandwidth_bytes_s;
  options.allow_throttle = plan_.allow_throttle;
  options.on_step = [this](std::string_view step) { return on_step(source_, step); };
  migration::Transport& network = *this;
  const auto session =
      std::make_shared<migration::SourceSession>(*source_.guest, std::move(options), network, *source_journal_);
  session_ = session->id().raw();
  source_.source = session;
  result_ = "killed";
  const v1::MigrateResult result = session->run();
  alive();
  result_ = result.result();
  reason_ = result.error();
  expect((result_ == "completed") == result.error().empty(), "a result other than completed has a reason");
  source_.left = session->state();
  source_.source.reset();
  close_departure();
}

/// fvmmd's part (Claim::close_departure): what the worker knows and could not write.
inline void SimWorld::close_departure() {
  if (!source_.open() || !source_.left) return;
  const SimWord known = source_.word();
  if (known == SimWord::kUnknown ||
      !source_.disk.close(known == SimWord::kStarted ? v1::OUTCOME_STARTED : v1::OUTCOME_ABORTED)) {
    return;
  }
  trace(1, "fvmmd records how the session ended");
}

inline void SimWorld::serve(std::unique_ptr<net::Stream> stream) {
  v1::PeerHello hello;
  const Deadline wait = Deadline::after(std::chrono::seconds(20));
  if (!net::receive_message(*stream, net::FrameType::kHello, hello, wait)) return;
  if (hello.purpose() == v1::MIGRATE) return migrate_in(std::move(stream), hello);
  if (hello.purpose() == v1::DATA) {
    const auto session = destination_.destination;
    if (session && session->id().raw() == hello.session()) {
      (void)session->add_connection({hello.index(), std::move(stream)});
    }
    return;
  }
  v1::PeerMessage message;
  message.set_kind(v1::PEER_ANSWER);
  *message.mutable_answer() = answer(hello.session());
  told(sim_word(message.answer()));
  (void)net::send_message(*stream, net::FrameType::kControl, message, wait);
}

inline void SimWorld::migrate_in(std::unique_ptr<net::Stream> stream, const v1::PeerHello& hello) {
  if (destination_.disk.refused_unknown(hello.session()) || destination_.destination || destination_.disk.record()) {
    v1::PeerMessage message;
    message.set_kind(v1::PEER_REJECTED);
    (void)net::send_message(*stream, net::FrameType::kControl, message, Deadline::after(std::chrono::seconds(1)));
    return;
  }
  migration::DestinationSession::Environment environment;
  environment.make_guest = [this](const v1::PeerHello& incoming) -> Result<std::unique_ptr<migration::Guest>> {
    alive();
    return make_guest(destination_, incoming.vm(), incoming.template_(),
                      {.load = plan_.load_fails, .start = plan_.start_fails, .start_takes = plan_.start_takes});
  };
  environment.journal = destination_journal_.get();
  environment.on_step = [this](std::string_view step) { return on_step(destination_, step); };
  environment.boot_id = "peer-boot";
  const auto session =
      std::make_shared<migration::DestinationSession>(hello, std::move(stream), std::move(environment));
  destination_.destination = session;
  auto guest = session->run();
  alive();
  if (guest) destination_.guest = std::move(*guest);
}

/// fvmmd's answer: the living worker's, else the record's, else a refusal for good.
inline v1::SessionAnswer SimWorld::answer(const std::string& id) {
  alive();
  v1::SessionAnswer answer;
  const auto session = destination_.destination;
  const auto& record = destination_.disk.record();
  if (session && session->id().raw() == id) {
    if (plan_.plant != SimPlant::kLateCommit || dest_ran_ || !record) return session->answer();
    v1::SessionRecord refused = *record;
    refused.set_outcome(v1::OUTCOME_REFUSED);
    answer.set_outcome(destination_journal_->write(refused) ? "refused" : "unknown");
    return answer;
  }
  SimWord word = SimWord::kUnknown;
  if (record && record->session() == id) {
    word = destination_.word_of_disk();
  } else if (destination_.disk.refused_unknown(id) || destination_.disk.refuse_unknown(id)) {
    word = SimWord::kRefused;
  }
  answer.set_outcome(word == SimWord::kStarted ? "started" : word == SimWord::kRefused ? "refused" : "unknown");
  return answer;
}

}  // namespace fvmm::testing
