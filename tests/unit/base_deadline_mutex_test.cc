#include "base/deadline_mutex.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace fvmm {
namespace {

TEST(DeadlineMutex, IsHeldByOneAtATime) {
  DeadlineMutex mutex;
  int value = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 1'000; ++i) {
          const std::lock_guard lock(mutex);
          ++value;
        }
      });
    }
  }
  EXPECT_EQ(value, 4'000);
}

TEST(DeadlineMutex, GivesUpAtTheDeadlineAndNotBefore) {
  DeadlineMutex mutex;
  std::unique_lock held(mutex);
  const auto when = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
  std::jthread([&] {
    std::unique_lock lock(mutex, std::defer_lock);
    EXPECT_FALSE(lock.try_lock());
    EXPECT_FALSE(lock.try_lock_until(when));
    EXPECT_GE(std::chrono::steady_clock::now(), when);
  }).join();
  held.unlock();
  EXPECT_TRUE(mutex.try_lock());
  mutex.unlock();
}

TEST(DeadlineMutex, IsTakenAsSoonAsItIsFree) {
  DeadlineMutex mutex;
  std::unique_lock held(mutex);
  std::jthread waiter([&] {
    const std::unique_lock lock(mutex, std::chrono::steady_clock::now() + std::chrono::seconds(60));
    EXPECT_TRUE(lock.owns_lock());
  });
  held.unlock();
}

}  // namespace
}  // namespace fvmm
