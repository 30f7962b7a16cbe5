#include "migration/cow.h"

#include <gtest/gtest.h>

#include "support/fake_machine.h"
#include "support/image_sink.h"
#include "support/userfault.h"

namespace fvmm::migration {
namespace {

using testing::FakeMachine;
using testing::ImageSink;
using testing::kFakePages;

/// A fake guest that runs, and what it has written since the last generation.
class CowTest : public ::testing::Test {
 protected:
  void SetUp() override { FVMM_NEEDS_USERFAULT(); }
  std::unique_ptr<FakeMachine> machine_with(testing::FakeFaults faults) {
    auto made = std::make_unique<FakeMachine>(7, std::make_shared<testing::Runners>(), -1, faults);
    made->record_instants();
    EXPECT_TRUE(faults.resume || made->resume().ok());
    return made;
  }
  static memory::Digest last_instant(const FakeMachine& machine) { return machine.instants().rbegin()->second; }
};

TEST_F(CowTest, IsTheInstantOfThePauseWhileTheGuestRunsOn) {
  const auto machine = machine_with({});
  const auto copy = testing::instant_copy_of(machine->memory());
  const auto since = machine->dirty().add_reader();
  ImageSink image(kFakePages);
  std::uint64_t faults = 0;
  for (int generation = 0; generation < 200; ++generation) {
    for (int step = 0; step < generation % 40; ++step) machine->step();
    image.on_put = [&](memory::PageRange) {  // the handler serves this thread, too
      machine->step_if_running();
      return Status();
    };
    const auto taken = generation % 3 == 2 ? chase(*machine, *since, image) : cow(*machine, *since, image, *copy);
    ASSERT_TRUE(taken.ok()) << taken.error().message();
    ASSERT_TRUE(machine->running());
    ASSERT_EQ(image.digest(), last_instant(*machine)) << generation;
    if (generation % 3 != 2) {
      ASSERT_TRUE(image.came_once(taken->pages)) << generation;
      faults += taken->faults;
    }
    image.came_once(taken->pages);
    EXPECT_EQ(taken->state.pit2().size(), 16U);
    EXPECT_GT(taken->realtime_ns, 0U);
  }
  EXPECT_GT(faults, 0U);
}

TEST_F(CowTest, ArmsMostBeforeThePause) {
  const auto machine = machine_with({});
  const auto copy = testing::instant_copy_of(machine->memory());
  const auto since = machine->dirty().add_reader();
  memory::Bitmap all(kFakePages);
  all.set_all();
  since->put_back(all);
  ImageSink image(kFakePages);
  const auto taken = cow(*machine, *since, image, *copy);
  ASSERT_TRUE(taken.ok()) << taken.error().message();
  EXPECT_EQ(taken->pages.count(), kFakePages);
  EXPECT_GE(taken->rounds, 1U);
  EXPECT_LE(taken->pause_pages, kCowPausePages);
  EXPECT_EQ(image.digest(), last_instant(*machine));
}

TEST_F(CowTest, APausedMachineStaysPaused) {
  const auto machine = machine_with({.resume = true});
  const auto copy = testing::instant_copy_of(machine->memory());
  const auto since = machine->dirty().add_reader();
  machine->step();
  ImageSink image(kFakePages);
  ASSERT_TRUE(cow(*machine, *since, image, *copy).ok());
  EXPECT_TRUE(machine->paused());
  EXPECT_EQ(image.digest(), last_instant(*machine));
}

/// After a failure: everything is to be captured again, nothing is protected, the guest runs.
void expect_as_before(FakeMachine& machine, memory::DirtyTracker::Reader& since, const memory::Bitmap& wanted,
                      memory::InstantCopy& copy) {
  memory::Bitmap missing = wanted;
  for (std::size_t i = 0; i < missing.words().size(); ++i) missing.words()[i] &= ~since.pending().words()[i];
  EXPECT_FALSE(missing.any());
  EXPECT_TRUE(machine.running());
  EXPECT_EQ(copy.unarmed(wanted), wanted.count());
  for (memory::PageIndex page = 0; page < kFakePages; ++page) {
    machine.memory().pages_for_load({page, 1})[0] = std::byte{1};  // would wait for ever
  }
}

TEST_F(CowTest, AFailureAnywhereGivesThePagesBackAndTheGuestRunsOn) {
  memory::Bitmap wanted(kFakePages);
  wanted.set_range({100, 2000});
  const auto attempt = [&](testing::FakeFaults faults, int bad_put, int stop_at) {
    const auto machine = machine_with(faults);
    const auto copy = testing::instant_copy_of(machine->memory());
    const auto since = machine->dirty().add_reader();
    since->put_back(wanted);
    ImageSink image(kFakePages);
    int puts = 0;
    int asked = 0;
    image.on_put = [&](memory::PageRange) {
      return ++puts == bad_put ? Status(Error(Errc::kUnavailable, "the link is gone")) : Status();
    };
    const auto taken = cow(*machine, *since, image, *copy, [&] { return ++asked == stop_at; });
    ASSERT_FALSE(taken.ok());
    EXPECT_EQ(taken.error().code(), bad_put > 0   ? Errc::kUnavailable
                                    : stop_at > 0 ? Errc::kCancelled
                                                  : Errc::kInternal);
    expect_as_before(*machine, *since, wanted, *copy);
  };
  attempt({.pause = true}, 0, 0);
  attempt({.save = true}, 0, 0);
  for (const int number : {1, 2, 20, 50}) {
    SCOPED_TRACE(number);
    attempt({}, number, 0);
    attempt({}, 0, number);
  }
}

TEST_F(CowTest, ThenTheNextOneIsWhole) {
  const auto machine = machine_with({});
  const auto copy = testing::instant_copy_of(machine->memory());
  const auto since = machine->dirty().add_reader();
  ImageSink image(kFakePages);
  std::mt19937_64 random(3);
  for (int generation = 0; generation < 100; ++generation) {
    for (int step = 0; step < 50; ++step) machine->step();
    int left = generation % 2 == 0 ? static_cast<int>(random() % 40) : 1 << 30;
    image.on_put = [&](memory::PageRange) {
      machine->step();
      return left-- == 0 ? Status(Error(Errc::kUnavailable, "the link is gone")) : Status();
    };
    const auto taken = cow(*machine, *since, image, *copy);
    if (!taken) continue;
    ASSERT_EQ(image.digest(), last_instant(*machine)) << generation;
  }
}

}  // namespace
}  // namespace fvmm::migration
