// The right to run leaves a machine while somebody works with it: the work fails with the reason, and nothing runs.
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include "base/fence.h"
#include "migration/capture.h"
#include "support/fake_migration.h"

namespace fvmm::testing {
namespace {

constexpr const char* kWhy = "recovered at peer:7000";

class FenceTest : public ::testing::Test {
 protected:
  void SetUp() override { spdlog::default_logger_raw()->set_level(spdlog::level::off); }
};

TEST_F(FenceTest, FirstReasonStandsForGood) {
  Fence fence;
  EXPECT_TRUE(fence.check());
  EXPECT_FALSE(fence.closed());
  fence.close("first");
  fence.close("second");
  EXPECT_TRUE(fence.closed());
  ASSERT_FALSE(fence.check());
  EXPECT_EQ(fence.check().error().code(), Errc::kAborted);
  EXPECT_EQ(fence.check().error().message(), "first");
}

/// Fences the machine when it is given its first pages.
class FencingSink final : public migration::PageSink {
 public:
  explicit FencingSink(migration::Machine& machine) : machine_(machine) {}
  Status put(memory::PageRange, const std::byte*) override { return machine_.fence(kWhy); }
  Status reserve(std::uint64_t) override { return {}; }

 private:
  migration::Machine& machine_;
};

TEST_F(FenceTest, CaptureUnderWayFailsAndGivesItsPagesBack) {
  FakeMachine machine(sim_seed(), std::make_shared<Runners>());
  const auto since = machine.dirty().add_reader();
  machine.set_pages_per_step(600);
  ASSERT_TRUE(machine.resume());
  machine.step();
  FencingSink sink(machine);
  const auto taken = migration::chase(machine, *since, sink);
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code(), Errc::kAborted);
  EXPECT_NE(taken.error().message().find(kWhy), std::string::npos);
  EXPECT_GT(since->pending().count(), 0U);
  EXPECT_FALSE(machine.running());
}

/// Fenced at a step of its migration, in every mode.
class FencedAt : public ::testing::TestWithParam<std::tuple<const char*, migration::Mode>> {
 protected:
  void SetUp() override { spdlog::default_logger_raw()->set_level(spdlog::level::off); }
};

TEST_P(FencedAt, NothingIsCommittedAndNobodyRuns) {
  const auto [at, mode] = GetParam();
  Scenario scenario;
  scenario.seed = sim_seed();
  scenario.mode = mode;
  migration::Machine* machine = nullptr;
  scenario.source_step = [&, at = at](std::string_view step) -> Status {
    return step == at ? machine->fence(kWhy) : Status{};
  };
  FakeMigration migration(std::move(scenario));
  machine = migration.source().machine.get();
  migration.run();
  EXPECT_EQ(migration.state(), migration::SourceState::kAborted);
  EXPECT_EQ(migration.result().result(), "aborted");
  EXPECT_EQ(migration.result().code(), static_cast<std::uint32_t>(Errc::kAborted));
  EXPECT_NE(migration.result().error().find(kWhy), std::string::npos) << migration.result().error();
  EXPECT_FALSE(migration.source_runs());
  EXPECT_FALSE(migration.destination_runs());
  EXPECT_EQ(migration.source_resumes(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Steps, FencedAt,
    ::testing::Combine(::testing::Values("connect", "hello", "leaving", "ready", "data", "converged", "pause", "save",
                                         "harvest", "pages", "state", "prepared", "commit"),
                       ::testing::Values(migration::Mode::kSuspend, migration::Mode::kLive, migration::Mode::kPrecopy)),
    [](const auto& tested) {
      return std::string(std::get<0>(tested.param)) + "_" +
             std::string(migration::to_string(std::get<1>(tested.param)));
    });

TEST_F(FenceTest, CancelledBecauseOfItNamesTheReason) {
  Scenario scenario;
  scenario.seed = sim_seed();
  migration::Machine* machine = nullptr;
  migration::SourceSession* session = nullptr;
  scenario.on_session = [&](migration::SourceSession& made) { session = &made; };
  scenario.source_step = [&](std::string_view step) -> Status {
    if (step != "prepared") return {};
    FVMM_TRY(machine->fence(kWhy));
    session->cancel();  // as the worker does, so that no wait for the peer holds the command up
    return {};
  };
  FakeMigration migration(std::move(scenario));
  machine = migration.source().machine.get();
  migration.run();
  EXPECT_EQ(migration.state(), migration::SourceState::kAborted);
  EXPECT_NE(migration.result().error().find(kWhy), std::string::npos) << migration.result().error();
  EXPECT_FALSE(migration.destination_runs());
}

TEST_F(FenceTest, AfterCommitItIsTooLateAndThePeerRuns) {
  Scenario scenario;
  scenario.seed = sim_seed();
  migration::Machine* machine = nullptr;
  scenario.source_step = [&](std::string_view step) -> Status {
    return step == "started" ? machine->fence(kWhy) : Status{};
  };
  FakeMigration migration(std::move(scenario));
  machine = migration.source().machine.get();
  migration.run();
  EXPECT_EQ(migration.state(), migration::SourceState::kDone);
  EXPECT_TRUE(migration.destination_runs());
  EXPECT_FALSE(migration.source_runs());
}

}  // namespace
}  // namespace fvmm::testing
