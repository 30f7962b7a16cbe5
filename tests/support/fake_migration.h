// One whole migration between two fake hosts, and what must be true of it however it ends.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "migration/source.h"
#include "support/fake_machine.h"
#include "support/fake_peer.h"

namespace fvmm::testing {

/// The seed of a simulation: FVMM_SEED, or the default. Printed, so that a failure can be played again.
inline std::uint64_t sim_seed(std::uint64_t otherwise = 20240607) {
  const char* text = std::getenv("FVMM_SEED");  // NOLINT(concurrency-mt-unsafe): before any thread
  const std::uint64_t seed = text == nullptr ? otherwise : std::strtoull(text, nullptr, 0);
  ::testing::Test::RecordProperty("seed", std::to_string(seed));
  std::printf("FVMM_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

/// Everything that makes a run what it is.
struct Scenario {
  std::uint64_t seed = 1;
  migration::Mode mode = migration::Mode::kSuspend;
  unsigned connections = 1;
  unsigned steps_before = 4;  // of the guest, before the migration
  unsigned pages_per_step = 6;
  bool running = true;     // or paused by its user
  int template_file = -1;  // both hosts have it; -1: the zero template
  v1::TemplateRef base;
  FakeFaults source_faults;
  FakeFaults destination_faults;
  std::set<int> source_failing_writes;
  std::set<int> destination_failing_writes;
  migration::StepHook source_step;
  migration::StepHook destination_step;
  std::function<void(migration::SourceSession&)> on_session;  // before it runs
  std::function<Result<LinkScript>(unsigned number)> link;
  std::function<bool(net::Stream&, const v1::PeerHello&)> intercept;
  std::chrono::microseconds max_downtime{1'000'000};  // a loaded machine shall not decide how many rounds there are
  std::chrono::milliseconds timeout{20'000};
  bool allow_throttle = false;
  migration::SourceWaits source_waits{.answer = std::chrono::seconds(20),
                                      .asking = std::chrono::seconds(20),
                                      .ask = std::chrono::seconds(20),
                                      .ask_pause = std::chrono::milliseconds(1)};
  migration::DestinationSession::Waits destination_waits{.commit = std::chrono::seconds(20),
                                                         .settled = std::chrono::seconds(20),
                                                         .connections = std::chrono::seconds(20),
                                                         .start = std::chrono::seconds(20)};
};

/// Owner: one thread.
class FakeMigration {
 public:
  explicit FakeMigration(Scenario scenario)
      : scenario_(std::move(scenario)), source_journal_(source_disk_, scenario_.source_failing_writes) {
    auto machine =
        std::make_unique<FakeMachine>(scenario_.seed, runners_, scenario_.template_file, scenario_.source_faults);
    machine->set_pages_per_step(scenario_.pages_per_step);
    runners_->add_disk();
    source_ = guest_around(config_with_disk(), scenario_.base, std::move(machine));
    FVMM_CHECK(scenario_.source_faults.take_disks || fake(*source_).take_disks().ok(), "nobody else has them yet");
    for (unsigned i = 0; i < scenario_.steps_before; ++i) fake(*source_).step();
    if (scenario_.running && !scenario_.source_faults.resume) FVMM_CHECK(fake(*source_).resume().ok(), "it can run");
    resumes_before_ = fake(*source_).resumes();
    peer_.emplace(peer_options());
  }

  /// To the end, both sides. Once.
  void run() {
    migration::SourceOptions options;
    options.mode = scenario_.mode;
    options.peer = "peer:7000";
    options.from = "source:7000";
    options.connections = scenario_.connections;
    options.max_downtime = scenario_.max_downtime;
    options.timeout = scenario_.timeout;
    options.allow_throttle = scenario_.allow_throttle;
    options.waits = scenario_.source_waits;
    options.on_step = [this](std::string_view step) -> Status {
      fake(*source_).step_if_running();
      source_steps_.emplace_back(step);
      return scenario_.source_step ? scenario_.source_step(step) : Status{};
    };
    options.on_event = [this](const v1::MigrateEvent&) { fake(*source_).step_if_running(); };
    {
      migration::SourceSession session(*source_, std::move(options), *peer_, source_journal_);
      session_ = session.id();
      if (scenario_.on_session) scenario_.on_session(session);
      try {
        result_ = session.run();
      } catch (const Killed&) {
        source_killed_ = true;
      }
      state_ = session.state();
    }
    if (source_killed_) source_.reset();
    peer_->join();
  }

  /// The question of `migrate resolve`.
  Result<v1::SessionAnswer> ask() {
    auto answer =
        migration::ask_session(*peer_, session_, source_config().id(), Deadline::after(std::chrono::seconds(20)));
    peer_->join();
    return answer;
  }

  [[nodiscard]] const v1::MigrateResult& result() const { return result_; }
  [[nodiscard]] migration::SourceState state() const { return state_; }
  [[nodiscard]] bool source_killed() const { return source_killed_; }
  [[nodiscard]] const FakeDisk& source_disk() const { return *source_disk_; }
  [[nodiscard]] const FakeDisk& peer_disk() const { return peer_->disk(); }
  [[nodiscard]] migration::Guest& source() { return *source_; }
  [[nodiscard]] migration::Guest* destination() { return peer_->guest(); }
  [[nodiscard]] FakePeer& peer() { return *peer_; }
  [[nodiscard]] Runners& runners() { return *runners_; }
  [[nodiscard]] const Id& session() const { return session_; }
  [[nodiscard]] const std::vector<std::string>& source_steps() const { return source_steps_; }
  [[nodiscard]] const std::vector<std::string>& destination_steps() const { return destination_steps_; }

  [[nodiscard]] bool source_runs() { return source_ && fake(*source_).running(); }
  [[nodiscard]] bool destination_runs() { return destination() != nullptr && fake(*destination()).running(); }
  [[nodiscard]] int source_resumes() { return fake(*source_).resumes() - resumes_before_; }

  /// What holds of every run in which no process died.
  void expect_sound() {
    EXPECT_LE(runners_->most(), 1) << "two machines ran one VM";
    EXPECT_EQ(runners_->now(), (source_runs() ? 1 : 0) + (destination_runs() ? 1 : 0));
    switch (state_) {
      case migration::SourceState::kDone:
        return expect_moved();
      case migration::SourceState::kAborted:
        return expect_aborted();
      case migration::SourceState::kUnknown:
        EXPECT_EQ(result_.result(), "unknown");
        EXPECT_FALSE(result_.error().empty());
        EXPECT_FALSE(source_runs()) << "the peer may run it";
        EXPECT_NE(runners_->disk_holder(), source_->machine.get()) << "and take its disks";
        EXPECT_EQ(source_disk_->outcome(), v1::OUTCOME_OPEN) << "or a restart would start it";
        return;
      default:
        ADD_FAILURE() << "the session ended in state " << migration::to_string(state_);
    }
  }
  void expect_moved() {
    EXPECT_EQ(result_.result(), "completed");
    EXPECT_TRUE(result_.error().empty()) << result_.error();
    EXPECT_FALSE(source_runs());
    EXPECT_NE(peer_disk().outcome(), v1::OUTCOME_REFUSED);
    if (scenario_.source_failing_writes.empty()) {
      EXPECT_EQ(source_disk_->outcome(), v1::OUTCOME_STARTED);
    }
    if (scenario_.destination_failing_writes.empty()) {
      EXPECT_EQ(peer_disk().outcome(), v1::OUTCOME_STARTED);
    }
    ASSERT_NE(destination(), nullptr);
    EXPECT_EQ(runners_->disk_holder(), destination()->machine.get());
    EXPECT_EQ(destination_runs(), scenario_.running) << "a guest that its user had paused arrives paused";
    expect_same_guest();
  }
  void expect_aborted() {
    EXPECT_EQ(result_.result(), "aborted");
    EXPECT_FALSE(result_.error().empty());
    EXPECT_EQ(source_runs(), scenario_.running && !scenario_.source_faults.resume);
    EXPECT_FALSE(destination_runs());
    EXPECT_EQ(runners_->disk_holder(), source_->machine.get()) << "it may go on writing";
    EXPECT_NE(peer_disk().outcome(), v1::OUTCOME_STARTED);
    if (scenario_.source_failing_writes.empty() && source_disk_->outcome()) {
      EXPECT_EQ(source_disk_->outcome(), v1::OUTCOME_ABORTED);
    }
    // What was admitted is refused for good, so that no late COMMIT and no restart over there starts it.
    if (scenario_.destination_failing_writes.empty() && peer_disk().outcome()) {
      EXPECT_EQ(peer_disk().outcome(), v1::OUTCOME_REFUSED);
    }
    if (!peer_->killed() && peer_->session()) {
      EXPECT_TRUE(peer_->error()) << "the destination has a reason as well";
    }
  }
  /// The source is frozen as it was at its pause: the destination must equal it, byte by byte.
  void expect_same_guest() {
    EXPECT_EQ(fake(*destination()).registers(), fake(*source_).registers());
    EXPECT_TRUE(same_memory(*source_, *destination()));
    EXPECT_EQ(unmarked_pages(*destination()), std::vector<memory::PageIndex>{});
    EXPECT_EQ(destination()->fencing_token, source_->fencing_token + 1);
  }

 private:
  static v1::VmConfig config_with_disk() {
    v1::VmConfig config = fake_config();
    config.add_disks()->set_path("/disk");
    return config;
  }
  v1::VmConfig source_config() const { return config_with_disk(); }
  FakePeer::Options peer_options() {
    FakePeer::Options options;
    options.make_guest = [this](const v1::PeerHello& hello) -> Result<std::unique_ptr<migration::Guest>> {
      const int file = hello.template_().id().empty() ? -1 : scenario_.template_file;
      return guest_around(hello.vm(), hello.template_(),
                          std::make_unique<FakeMachine>(0, runners_, file, scenario_.destination_faults));
    };
    options.failing_writes = scenario_.destination_failing_writes;
    options.on_step = [this](std::string_view step) -> Status {
      destination_steps_.emplace_back(step);
      return scenario_.destination_step ? scenario_.destination_step(step) : Status{};
    };
    options.waits = scenario_.destination_waits;
    options.link = scenario_.link;
    options.intercept = scenario_.intercept;
    return options;
  }

  Scenario scenario_;
  std::shared_ptr<Runners> runners_ = std::make_shared<Runners>();
  std::shared_ptr<FakeDisk> source_disk_ = std::make_shared<FakeDisk>();
  FakeJournal source_journal_;
  std::unique_ptr<migration::Guest> source_;
  int resumes_before_ = 0;
  std::vector<std::string> source_steps_;
  std::vector<std::string> destination_steps_;  // the destination's thread, until join()
  v1::MigrateResult result_;
  migration::SourceState state_{};
  Id session_;
  bool source_killed_ = false;
  std::optional<FakePeer> peer_;
};

}  // namespace fvmm::testing
