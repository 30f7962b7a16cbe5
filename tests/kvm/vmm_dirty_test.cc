// The dirty log against the truth: a byte comparison of memory before and after.
#include <cstring>

#include "support/guest_vm.h"

namespace fvmm {
namespace {

constexpr std::uint64_t kBytes = 64 * kMiB;

/// All of guest RAM as it is now.
std::vector<std::byte> contents(vmm::Vm& vm) {
  const auto bytes = vm.memory().pages({0, vm.memory().layout().pages()});
  return {bytes.begin(), bytes.end()};
}

memory::Bitmap changed(const std::vector<std::byte>& before, vmm::Vm& vm) {
  memory::Bitmap pages(vm.memory().layout().pages());
  for (memory::PageIndex page = 0; page < pages.pages(); ++page) {
    const auto now = vm.memory().pages({page, 1});
    if (std::memcmp(before.data() + page * kPageBytes, now.data(), kPageBytes) != 0) pages.set(page);
  }
  return pages;
}

/// Pages of `all` that `some` lacks.
std::uint64_t missing(const memory::Bitmap& all, const memory::Bitmap& some) {
  std::uint64_t count = 0;
  for (const memory::PageRange& range : all.ranges(1)) count += some.test(range.first) ? 0 : 1;
  return count;
}

Result<std::unique_ptr<vmm::Vm>> started(const std::string& options) {
  auto vm = FVMM_TRY(test::boot_vm("workload.elf", kBytes, options));
  FVMM_TRY(vm->resume());
  test::wait_for_output(*vm, "HB n=1 ");
  return vm;
}

TEST(DirtyLog, EveryChangedPageIsLoggedAndLittleElse) {
  FVMM_NEEDS_KVM();
  auto made = started("seed=5 fill=0 ws=4 rate=2000 cpu=0 beat=20");
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  const auto reader = vm.dirty().add_reader();
  std::uint64_t logged = 0;
  std::uint64_t unchanged = 0;
  for (int round = 0; round < 5; ++round) {
    ASSERT_TRUE(vm.pause().ok());
    ASSERT_TRUE(vm.dirty().harvest().ok());
    reader->reset();
    const auto before = contents(vm);
    ASSERT_TRUE(vm.resume().ok());
    test::wait_for_next(vm, "HB ");
    ASSERT_TRUE(vm.pause().ok());
    ASSERT_TRUE(vm.dirty().harvest().ok());
    const memory::Bitmap truth = changed(before, vm);
    EXPECT_GT(truth.count(), 0U);
    EXPECT_EQ(missing(truth, reader->pending()), 0U) << "pages were lost in round " << round;
    logged += reader->pending().count();
    unchanged += missing(reader->pending(), truth);
    ASSERT_TRUE(vm.resume().ok());
  }
  std::printf("%llu pages logged, %llu of them unchanged\n", static_cast<unsigned long long>(logged),
              static_cast<unsigned long long>(unchanged));
  // The working set's pages always change; of its own the guest has its stack, its data and little more.
  EXPECT_LE(unchanged, 5 * 16U);
}

TEST(DirtyLog, OfAStandingGuestIsEmptyAndOfOnePausedRewriterNearlySo) {
  FVMM_NEEDS_KVM();
  auto made = started("fill=0 ws=4 rate=2000 cpu=0 beat=20");
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  test::type(vm, "p");
  test::wait_for_output(vm, "PAUSED step=");
  const auto reader = vm.dirty().add_reader();
  ASSERT_TRUE(vm.dirty().harvest().ok());
  reader->reset();
  test::wait_for_next(vm, "HB ");
  ASSERT_TRUE(vm.dirty().harvest().ok());
  EXPECT_LE(reader->pending().count(), 16U) << "only the guest's own stack and data are written now";
  ASSERT_TRUE(vm.pause().ok());
  ASSERT_TRUE(vm.dirty().harvest().ok());
  reader->reset();
  ASSERT_TRUE(vm.dirty().harvest().ok());
  EXPECT_EQ(reader->pending().count(), 0U);
}

// Clear first, read the page after: what is copied while the guest writes is whole once nothing is dirty any more.
TEST(DirtyLog, CopyByRoundsEndsEqual) {
  FVMM_NEEDS_KVM();
  auto made = started("seed=9 ws=8 rate=20000 beat=20");
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  const auto reader = vm.dirty().add_reader();
  memory::Bitmap pages(vm.memory().layout().pages());
  pages.set_all();
  std::vector<std::byte> shadow(kBytes);
  const auto copy = [&] {
    for (const memory::PageRange& range : pages.ranges(pages.pages())) {
      const auto bytes = vm.memory().pages(range);
      std::memcpy(shadow.data() + range.first * kPageBytes, bytes.data(), bytes.size());
    }
  };
  for (int round = 0; round < 20; ++round) {
    copy();
    ASSERT_TRUE(vm.dirty().harvest().ok());
    reader->take_into(pages);
  }
  ASSERT_TRUE(vm.pause().ok());
  copy();
  ASSERT_TRUE(vm.dirty().harvest().ok());
  reader->take_into(pages);
  copy();
  EXPECT_EQ(changed(shadow, vm).count(), 0U);
}

TEST(DirtyLog, WritesOfDevicesAreMarked) {
  FVMM_NEEDS_KVM();
  auto made = test::boot_vm("workload.elf", kBytes, "");
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  const auto reader = vm.dirty().add_reader();
  ASSERT_TRUE(vm.dirty().harvest().ok());  // what boot() wrote
  EXPECT_TRUE(reader->pending().test(0x6000 / kPageBytes));
  EXPECT_TRUE(reader->pending().test(0x100000 / kPageBytes));
  reader->reset();
  const std::vector<std::byte> across(2 * kPageBytes, std::byte{7});
  ASSERT_TRUE(vm.memory().write(32 * kMiB + 100, across).ok());
  ASSERT_TRUE(vm.dirty().harvest().ok());
  EXPECT_EQ(reader->pending().count(), 3U);
  EXPECT_TRUE(reader->pending().test(32 * kMiB / kPageBytes + 2));
}

TEST(DirtyLog, OneHarvestReachesEveryReader) {
  FVMM_NEEDS_KVM();
  auto made = started("fill=0 ws=2 rate=2000 cpu=0 beat=20");
  ASSERT_TRUE(made.ok()) << made.error().message();
  vmm::Vm& vm = **made;
  const auto round = vm.dirty().add_reader();
  const auto since_base = vm.dirty().add_reader();
  ASSERT_TRUE(vm.pause().ok());
  ASSERT_TRUE(vm.dirty().harvest().ok());
  EXPECT_GT(round->pending().count(), 0U);
  const memory::Bitmap first = round->take();
  EXPECT_EQ(missing(first, since_base->pending()), 0U);
  ASSERT_TRUE(vm.resume().ok());
  test::wait_for_next(vm, "HB ");
  ASSERT_TRUE(vm.pause().ok());
  ASSERT_TRUE(vm.dirty().harvest().ok());
  EXPECT_GT(round->pending().count(), 0U);
  EXPECT_EQ(missing(round->pending(), since_base->pending()), 0U);
  EXPECT_EQ(missing(first, since_base->pending()), 0U) << "what one reader took stays with the other";
}

}  // namespace
}  // namespace fvmm
