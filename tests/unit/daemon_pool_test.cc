#include <gtest/gtest.h>

#include <fstream>

#include "base/file.h"
#include "daemon/pool.h"
#include "support/daemon_fakes.h"

namespace fvmm::daemon {
namespace {

constexpr Shape kSmall{64 * kMiB, 1};
constexpr Shape kBig{1024 * kMiB, 1};

Deadline soon() {
  return Deadline::after(std::chrono::seconds(20));
}

class PoolTest : public testing::Test {
 protected:
  std::unique_ptr<WorkerPool> open(WorkerPool::Options options) {
    options.quiet = std::chrono::milliseconds(0);
    auto pool = WorkerPool::open(spawner_, std::move(options));
    EXPECT_TRUE(pool);
    return std::move(*pool);
  }
  test::ScratchDirectory scratch_;
  test::FakeSpawner spawner_{scratch_.path() / "workers"};
};

TEST_F(PoolTest, MissIsColdAndTheShapeIsWarmTheNextTime) {
  const auto pool = open({});
  const auto first = pool->take(kSmall, soon());
  ASSERT_TRUE(first);
  EXPECT_TRUE(first->cold);
  ASSERT_TRUE(pool->wait_full(soon()));
  const auto second = pool->take(kSmall, soon());
  ASSERT_TRUE(second);
  EXPECT_FALSE(second->cold);
  EXPECT_NE(first->worker->pid(), second->worker->pid());
}

TEST_F(PoolTest, OnlyTheExactShapeFits) {
  const auto pool = open({.always = {{kBig, 1}}});
  ASSERT_TRUE(pool->wait_full(soon()));
  const auto taken = pool->take(kSmall, soon());
  ASSERT_TRUE(taken);
  EXPECT_TRUE(taken->cold);
  EXPECT_EQ(taken->worker->shape(), kSmall);
}

TEST_F(PoolTest, ConfiguredShapesAreWarmBeforeAnyUse) {
  const auto pool = open({.always = {{kSmall, 2}, {kBig, 1}}});
  ASSERT_TRUE(pool->wait_full(soon()));
  EXPECT_EQ(pool->warm(), 3U);
}

TEST_F(PoolTest, CountsAreTakenAtTheirLimitAndRefusedOnePast) {
  EXPECT_TRUE(WorkerPool::open(spawner_, {.per_recent_shape = kWarmWorkersMax}));
  EXPECT_EQ(WorkerPool::open(spawner_, {.per_recent_shape = kWarmWorkersMax + 1}).error().code(),
            Errc::kInvalidArgument);
  EXPECT_FALSE(WorkerPool::open(spawner_, {.always = {{kSmall, kWarmWorkersMax + 1}}}));
  const Shape third{128 * kMiB, 1};
  EXPECT_FALSE(
      WorkerPool::open(spawner_, {.always = {{kSmall, kWarmWorkersMax}, {kBig, kWarmWorkersMax}, {third, 1}}}));
}

TEST_F(PoolTest, ShapesNotUsedForLongGiveWayAndTheTotalHolds) {
  const auto pool = open({.per_recent_shape = kWarmWorkersMax});
  for (unsigned i = 1; i <= kRecentShapesMax + 2; ++i) {
    ASSERT_TRUE(pool->take(Shape{i * 64 * kMiB, 1}, soon()));
    ASSERT_TRUE(pool->wait_full(soon()));
    EXPECT_LE(pool->warm(), kWarmWorkersTotalMax);
  }
  EXPECT_GT(spawner_.ended(), 0);
}

TEST_F(PoolTest, DeadWarmWorkerIsNotGivenOut) {
  const auto pool = open({.always = {{kSmall, 1}}});
  ASSERT_TRUE(pool->wait_full(soon()));
  spawner_.worker(0).end();
  ASSERT_TRUE(test::eventually([&] {
    pool->drop_dead();
    return pool->warm() == 0;
  }));
  const auto taken = pool->take(kSmall, soon());
  ASSERT_TRUE(taken);
  EXPECT_TRUE(taken->cold);
  EXPECT_TRUE(taken->worker->alive());
}

TEST_F(PoolTest, FailedSpawnIsTheTakersErrorAndNotRetriedInALoop) {
  const auto pool = open({.per_recent_shape = 0});
  spawner_.fail_next = true;
  const auto taken = pool->take(kSmall, soon());
  ASSERT_FALSE(taken);
  EXPECT_NE(taken.error().message().find("/dev/kvm"), std::string::npos);
  EXPECT_TRUE(pool->take(kSmall, soon()));
}

TEST_F(PoolTest, DrainEndsWhatIsWarmAndNotWhatWasTaken) {
  const auto pool = open({});
  const auto taken = pool->take(kSmall, soon());
  ASSERT_TRUE(taken);
  ASSERT_TRUE(pool->wait_full(soon()));
  pool->drain();
  EXPECT_EQ(spawner_.ended(), 1);
  EXPECT_TRUE(taken->worker->alive());
  EXPECT_EQ(pool->take(kSmall, soon()).error().code(), Errc::kUnavailable);
}

// The real spawner, with shell scripts in the worker's place.
class SpawnTest : public testing::Test {
 protected:
  ExecSpawner with_script(const std::string& body) {
    const auto script = scratch_.path() / "worker";
    std::ofstream(script) << "#!/bin/sh\n" << body << "\n";
    std::filesystem::permissions(script, std::filesystem::perms::owner_all);
    return ExecSpawner({.workers_directory = scratch_.path(), .executable = script});
  }
  test::ScratchDirectory scratch_;
};

TEST_F(SpawnTest, WorkerThatSaysReadyIsAliveInASessionOfItsOwn) {
  auto spawner = with_script("printf x >&3; exec sleep 600");
  const auto worker = spawner.spawn(kSmall, soon());
  ASSERT_TRUE(worker) << worker.error().message();
  EXPECT_TRUE((*worker)->alive());
  EXPECT_EQ(::getsid((*worker)->pid()), (*worker)->pid());
  end_worker(**worker);  // it serves nothing: killed
  EXPECT_FALSE((*worker)->alive());
  EXPECT_NE((*worker)->how_it_ended().find("signal 9"), std::string::npos);
}

TEST_F(SpawnTest, WorkerThatEndsFirstIsAnErrorWithItsLastWords) {
  auto spawner = with_script("echo '/dev/kvm: no such file' >&2; exit 7");
  const auto worker = spawner.spawn(kSmall, soon());
  ASSERT_FALSE(worker);
  EXPECT_NE(worker.error().message().find("code 7"), std::string::npos);
  EXPECT_NE(worker.error().message().find("/dev/kvm: no such file"), std::string::npos);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(scratch_.path()), {}), 1);  // only the script
}

TEST_F(SpawnTest, WorkerThatIsNeverReadyIsKilledAtTheDeadline) {
  auto spawner = with_script("exec sleep 600");
  const auto worker = spawner.spawn(kSmall, Deadline::after(std::chrono::milliseconds(50)));
  ASSERT_FALSE(worker);
  EXPECT_EQ(worker.error().code(), Errc::kDeadlineExceeded);
}

TEST_F(SpawnTest, WorkerGetsItsShapeAndNotTheNotifySocket) {
  ::setenv("NOTIFY_SOCKET", "/run/nowhere", 1);
  auto spawner = with_script("echo \"$@ [$NOTIFY_SOCKET]\" >&2; printf x >&3; exec sleep 600");
  const auto worker = spawner.spawn(kSmall, soon());
  ::unsetenv("NOTIFY_SOCKET");
  ASSERT_TRUE(worker);
  const std::string line = last_line((*worker)->log());
  EXPECT_NE(line.find("--worker --socket"), std::string::npos);
  EXPECT_NE(line.find("--memory 67108864 --vcpus 1 --ready-fd 3"), std::string::npos);
  EXPECT_NE(line.find("[]"), std::string::npos);
  end_worker(**worker);
}

}  // namespace
}  // namespace fvmm::daemon
