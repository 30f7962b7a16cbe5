// Pausing: as often as wanted, idempotent, scoped, and seen by the guest as nothing but a gap in time.
#include "base/pause_guard.h"
#include "support/guest_vm.h"

namespace fvmm {
namespace {

using std::chrono::milliseconds;

Result<std::unique_ptr<vmm::Vm>> running_workload() {
  auto vm = FVMM_TRY(test::boot_vm("workload.elf", 64 * kMiB, "seed=3 ws=4 rate=2000 beat=20"));
  FVMM_TRY(vm->resume());
  test::wait_for_output(*vm, "HB n=1 ");
  return vm;
}

TEST(Pause, ManyTimesWhileTheGuestVerifies) {
  FVMM_NEEDS_KVM();
  auto vm = running_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  for (int i = 0; i < 300; ++i) {
    ASSERT_TRUE((*vm)->pause().ok()) << i;
    ASSERT_TRUE((*vm)->resume().ok()) << i;
  }
  EXPECT_EQ(test::verified(**vm), "");
}

TEST(Pause, TwiceIsOnceAndSoIsResume) {
  FVMM_NEEDS_KVM();
  auto vm = running_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  EXPECT_TRUE((*vm)->resume().ok());
  ASSERT_TRUE((*vm)->pause().ok());
  ASSERT_TRUE((*vm)->pause().ok());
  EXPECT_TRUE((*vm)->paused());
  ASSERT_TRUE((*vm)->resume().ok());
  EXPECT_FALSE((*vm)->paused());
  EXPECT_EQ(test::verified(**vm), "");
}

TEST(Pause, NothingIsWrittenMeanwhile) {
  FVMM_NEEDS_KVM();
  auto made = running_workload();
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  const auto reader = vm.dirty().add_reader();
  ASSERT_TRUE(vm.pause().ok());
  ASSERT_TRUE(vm.serial_output()->flush(Deadline::after(std::chrono::seconds(10))).ok());
  const auto printed = vm.serial_output()->total_bytes();
  ASSERT_TRUE(vm.dirty().harvest().ok());
  reader->reset();
  std::this_thread::sleep_for(milliseconds(100));  // many beats of the guest, if it ran
  ASSERT_TRUE(vm.dirty().harvest().ok());
  EXPECT_EQ(reader->pending().count(), 0U);
  EXPECT_EQ(vm.serial_output()->total_bytes(), printed);
}

TEST(Pause, TheGuestsClocksGoOnAndTheGapIsThePause) {
  FVMM_NEEDS_KVM();
  auto made = running_workload();
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  const auto before = test::field(test::wait_for_next(vm, "HB "), "ms").value_or(0);
  ASSERT_TRUE(vm.pause().ok());
  std::this_thread::sleep_for(milliseconds(300));
  ASSERT_TRUE(vm.resume().ok());
  test::wait_for_next(vm, "HB ");
  const std::string line = test::wait_for_next(vm, "HB ");
  EXPECT_GE(test::field(line, "ms").value_or(0), before + 300) << line;
  const std::string all = vm.serial_output()->recent();
  std::uint64_t longest_us = 0;  // a pause that falls into the guest's own output shows there
  std::istringstream lines(all);
  for (std::string one; std::getline(lines, one);) {
    if (!one.starts_with("HB ")) continue;
    longest_us = std::max({longest_us, test::field(one, "gap_us").value_or(0), test::field(one, "io_us").value_or(0)});
  }
  EXPECT_GE(longest_us, 300'000U) << all;
}

TEST(PauseGuard, ResumesAtTheEndOfItsScopeAlsoAfterAnEarlyReturn) {
  FVMM_NEEDS_KVM();
  auto vm = running_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  const auto give_up = [&]() -> Status {
    const auto guard = FVMM_TRY(PauseGuard<vmm::Vm>::take(**vm));
    EXPECT_TRUE((*vm)->paused());
    return Error(Errc::kAborted, "half way");
  };
  EXPECT_FALSE(give_up().ok());
  EXPECT_FALSE((*vm)->paused());
  test::wait_for_next(**vm, "HB ");
}

TEST(PauseGuard, LeavesAPausedVmPaused) {
  FVMM_NEEDS_KVM();
  auto vm = running_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  ASSERT_TRUE((*vm)->pause().ok());
  {
    auto outer = PauseGuard<vmm::Vm>::take(**vm);
    ASSERT_TRUE(outer.ok());
    const PauseGuard<vmm::Vm> moved = std::move(*outer);
  }
  EXPECT_TRUE((*vm)->paused());
}

TEST(PauseGuard, KeepPausedLeavesTheVmFrozen) {
  FVMM_NEEDS_KVM();
  auto vm = running_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  {
    auto guard = PauseGuard<vmm::Vm>::take(**vm);
    ASSERT_TRUE(guard.ok());
    guard->keep_paused();
  }
  EXPECT_TRUE((*vm)->paused());
}

TEST(Fence, ARunningGuestStopsAtOnceAndNeverRunsAgain) {
  FVMM_NEEDS_KVM();
  auto made = running_workload();
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  const auto reader = vm.dirty().add_reader();
  std::thread other([&] { EXPECT_TRUE(vm.fence("recovered elsewhere").ok()); });
  other.join();
  ASSERT_TRUE(vm.serial_output()->flush(Deadline::after(std::chrono::seconds(10))).ok());
  const auto printed = vm.serial_output()->total_bytes();
  ASSERT_TRUE(vm.dirty().harvest().ok());
  reader->reset();
  EXPECT_FALSE(vm.paused()) << "its owner does not know";
  ASSERT_TRUE(vm.pause().ok());
  EXPECT_TRUE(vm.save_state().ok());
  const Status resumed = vm.resume();
  ASSERT_FALSE(resumed);
  EXPECT_EQ(resumed.error().code(), Errc::kAborted);
  EXPECT_NE(resumed.error().message().find("recovered elsewhere"), std::string::npos);
  EXPECT_TRUE(vm.paused());
  EXPECT_FALSE(vm.fenced());
  std::this_thread::sleep_for(milliseconds(100));  // many beats of the guest, if it ran
  ASSERT_TRUE(vm.dirty().harvest().ok());
  EXPECT_EQ(reader->pending().count(), 0U);
  EXPECT_EQ(vm.serial_output()->total_bytes(), printed);
}

TEST(Fence, OwnerWhoPausesAndResumesMeanwhileLosesTheRace) {
  FVMM_NEEDS_KVM();
  for (int i = 0; i < 5; ++i) {
    auto made = running_workload();
    ASSERT_TRUE(made.ok()) << made.error().message();
    vmm::Vm& vm = **made;
    std::atomic<bool> go{false};
    std::thread other([&] {
      while (!go) std::this_thread::yield();
      EXPECT_TRUE(vm.fence("recovered elsewhere").ok());
    });
    Status resumed;
    for (int turn = 0; turn < 10'000 && resumed; ++turn) {
      go = turn >= 4 * i;  // a little later each time
      ASSERT_TRUE(vm.pause().ok());
      resumed = vm.resume();
    }
    other.join();
    ASSERT_FALSE(resumed) << i;
    EXPECT_EQ(resumed.error().code(), Errc::kAborted) << i;
    EXPECT_TRUE(vm.paused());
    EXPECT_TRUE(vm.save_state().ok());
  }
}

TEST(Pause, AVmEndsWhileItsGuestRuns) {
  FVMM_NEEDS_KVM();
  auto vm = running_workload();
  ASSERT_TRUE(vm.ok()) << vm.error().message();
  vm->reset();
}

}  // namespace
}  // namespace fvmm
